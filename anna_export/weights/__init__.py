"""Weights: base, adapter, and the two merged, one tensor at a time."""
