"""Proof that an artifact's vectors are the reference's."""
