"""The base with its LoRA adapter, its forward pass and its loss."""
