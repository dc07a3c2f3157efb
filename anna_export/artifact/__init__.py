"""The artifact: its manifest, its folder, and the evidence about it."""
