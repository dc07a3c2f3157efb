"""Kernels for embedding models, each in two versions with one signature.

`anna_kernels.reference` says in plain PyTorch what is computed, on any device and with gradients.
`anna_kernels.fused` computes the same in one Triton launch, on a GPU, and
`anna_kernels.ahead_of_time` compiles that kernel to PTX with no GPU present. What is offered here
is the fused version on CUDA and the reference elsewhere; Triton is imported where it is needed.
"""

from anna_kernels.dispatch import last_token_pool_normalise
from anna_kernels.mean import mean_pool, mean_pool_normalise, token_range
from anna_kernels.pooling import RMSNorm

__all__ = [
    "RMSNorm",
    "last_token_pool_normalise",
    "mean_pool",
    "mean_pool_normalise",
    "token_range",
]
