"""A file of texts becomes a file of vectors."""
