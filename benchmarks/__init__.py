"""Measurements: whether what must hold still holds, and what decided how things are done."""
