"""Passes over the canonical graph, one a file; each numbers its rules."""
