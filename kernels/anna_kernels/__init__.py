"""Kernels for embedding models: a plain PyTorch reference and fused Triton versions."""
