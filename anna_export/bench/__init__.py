"""How fast an artifact is: in batches, under texts that arrive, and in turn with rivals."""
