"""Files: whole or not at all, locked, read by one way for each format."""
