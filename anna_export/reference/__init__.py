"""The PyTorch reference."""
