"""Rows: read, checked line by line, converted, and written."""
