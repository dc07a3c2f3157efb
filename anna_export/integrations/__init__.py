"""Other libraries and servers that run an artifact."""
