"""The Triton versions of `reference`: same signatures, one launch each, for inference on a GPU."""

from dataclasses import replace

import torch
import triton

from anna_kernels.kernel import Variant, last_token_pool_normalise_kernel
from anna_kernels.pooling import RMSNorm, check_inputs, wants_gradient


def last_token_pool_normalise(
    hidden: torch.Tensor,
    last: torch.Tensor,
    *,
    norm: RMSNorm | None = None,
    eps: float = 1e-12,
) -> torch.Tensor:
    """Take each row's last token, norm it and scale it to unit length, on a GPU.

    Of contiguous hidden states only B * D values are read; others are copied first.

    Args:
        hidden: (B, S, D) hidden states; bf16, fp16 or fp32.
        last: (B,) index of each row's last token, int32 or int64. An index outside 0..S-1 gives a
            vector of NaN: to refuse it here would wait for the device.
        norm: The model's final norm, where hidden states are those in front of it.
        eps: Smallest length divided by, so a zero vector stays zero. Each value compiles once.

    Returns:
        (B, D) float32, rows of unit L2 length; no gradient flows through them.

    Raises:
        TypeError: An input is no tensor or has another dtype.
        ValueError: Shapes or devices do not agree, eps is no norm, a gradient is wanted, or the
            tensors are not on a GPU.

    Source: `anna_kernels.reference.last_token_pool_normalise`.
    """
    check_inputs(hidden, last, norm, eps)
    if wants_gradient(hidden, norm):
        raise ValueError(
            "expected tensors without gradient, found requires_grad; "
            "call anna_kernels.last_token_pool_normalise, or this under torch.no_grad()"
        )
    if not hidden.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"expected tensors on a CUDA device, found {hidden.device}; "
            "anna_kernels.last_token_pool_normalise runs anywhere"
        )
    batch, seq, dim = hidden.shape
    vectors = torch.empty(batch, dim, dtype=torch.float32, device=hidden.device)
    variant = Variant(dim, hidden.dtype, last.dtype, eps=eps)
    weight = None
    if norm is not None:
        weight = norm.weight.contiguous()
        variant = replace(variant, weight_dtype=weight.dtype, norm_eps=norm.eps)
    with torch.cuda.device_of(hidden):
        # TensorRT passes no strides, so the kernel has none; hidden states leave a model contiguous
        last_token_pool_normalise_kernel[(batch,)](
            hidden.contiguous(),
            last.contiguous(),
            weight,
            seq,
            vectors,
            **variant.constants(),
            num_warps=variant.num_warps,
        )
    return vectors
