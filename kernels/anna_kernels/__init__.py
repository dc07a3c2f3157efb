"""Kernels for embedding models, each in two versions with one signature.

`anna_kernels.reference` says in plain PyTorch what is computed, on any device and with gradients;
what it has is offered here. `anna_kernels.fused` computes the same in one Triton launch, for
inference on a GPU, and `anna_kernels.ahead_of_time` compiles that kernel to PTX with no GPU
present. Those two need Triton and are imported by name; nothing else here imports it.
"""

from anna_kernels.reference import pool_normalise

__all__ = ["pool_normalise"]
