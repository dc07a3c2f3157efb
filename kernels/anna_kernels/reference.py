"""What each kernel computes, in plain PyTorch: the contract that the fused versions keep."""

from typing import Final

import torch

from anna_kernels.pooling import DTYPES, RMSNorm, check_inputs

# of the reference alone, for models whose gradients are tested in it
_DTYPES: Final = (*DTYPES, torch.float64)


def last_token_pool_normalise(
    hidden: torch.Tensor,
    last: torch.Tensor,
    *,
    norm: RMSNorm | None = None,
    eps: float = 1e-12,
) -> torch.Tensor:
    """Take each row's last token, norm it and scale it to unit length, in float32.

    Args:
        hidden: (B, S, D) hidden states; bf16, fp16, fp32 or fp64.
        last: (B,) index of each row's last token, int32 or int64, 0 <= last < S. Its values are
            read, so on a GPU this waits for the device.
        norm: The model's final norm, where hidden states are those in front of it.
        eps: Smallest length divided by, so a zero vector stays zero.

    Returns:
        (B, D) float32, rows of unit L2 length.

    Raises:
        TypeError: An input is no tensor or has another dtype.
        ValueError: Shapes or devices do not agree, eps is no norm, or a row has no last token.

    Source: the "lasttoken" mode of sentence-transformers' Pooling, then its Normalize;
    transformers' MistralRMSNorm, but for its rounding in between.
    """
    check_inputs(hidden, last, norm, eps, _DTYPES)
    outside = last[(last < 0) | (last >= hidden.shape[1])]
    if outside.numel():
        raise ValueError(f"expected last in 0..{hidden.shape[1] - 1}, found {outside[0].item()}")
    rows = torch.arange(len(hidden), device=hidden.device)
    states = hidden[rows, last.long()].float()
    if norm is not None:
        states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + norm.eps)
        states = norm.weight.float() * states
    length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    return states / length.clamp_min(eps)
