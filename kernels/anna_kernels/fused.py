"""The Triton versions of `reference`: same signatures, one launch each, for inference on a GPU."""

import torch
import triton

from anna_kernels.kernel import Variant, last_token_pool_normalise_kernel
from anna_kernels.pooling import (
    Offsets,
    Output,
    Pooled,
    RMSNorm,
    Tokens,
    check_inputs,
    wants_gradient,
)


def last_token_pool_normalise(
    hidden: torch.Tensor,
    tokens: Tokens,
    *,
    norm: RMSNorm | None = None,
    width: int | None = None,
    output: Output = Output.FLOAT32,
    ranges: torch.Tensor | None = None,
    eps: float = 1e-12,
) -> Pooled:
    """Take each row's last token, norm it, cut it to a width and scale it to unit length, on a GPU.

    Of contiguous hidden states only B * D values are read; others are copied first.

    Args:
        hidden: (B, S, D) hidden states, or (T, D) with `Offsets`; bf16, fp16 or fp32.
        tokens: Where each row's last token is. A row without one gives a vector that is not
            finite: to refuse it here would wait for the device.
        norm: The model's final norm, where hidden states are those in front of it.
        width: Dimensions to keep, before the length is made 1 (Matryoshka); None for all D.
        output: What a vector is written as.
        ranges: (2, width) float32 smallest and largest value of each dimension, for int8 and uint8.
        eps: Smallest length divided by, so a zero vector stays zero. Each value compiles once.

    Returns:
        Vectors (B, width) and which are finite; no gradient flows through them.

    Raises:
        TypeError: An input is no tensor or has another dtype.
        ValueError: Shapes or devices do not agree, eps is no norm, a gradient is wanted, or the
            tensors are not on a GPU.

    Source: `anna_kernels.reference.last_token_pool_normalise`.
    """
    check_inputs(hidden, tokens, norm, width, output, ranges, eps)
    weight = None if norm is None else norm.weight
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
    variant = Variant(
        dim=hidden.shape[-1],
        dtype=hidden.dtype,
        form=tokens.form,
        tokens_dtype=tokens.values.dtype,
        width=width,
        weight_dtype=None if weight is None else weight.dtype,
        norm_eps=0.0 if norm is None else norm.eps,
        output=output,
        flagged=True,
        eps=eps,
    )
    is_packed = isinstance(tokens, Offsets)
    batch = len(tokens.values) - 1 if is_packed else len(hidden)
    elements = output.elements(width or variant.dim)
    vectors = torch.empty(batch, elements, dtype=output.dtype, device=hidden.device)
    finite = torch.empty(batch, dtype=torch.bool, device=hidden.device)
    with torch.cuda.device_of(hidden):
        # TensorRT passes no strides, so the kernel has none; hidden states leave a model contiguous
        last_token_pool_normalise_kernel[(batch,)](
            hidden.contiguous(),
            tokens.values.contiguous(),
            None if weight is None else weight.contiguous(),
            None if ranges is None else ranges.contiguous(),
            hidden.shape[0 if is_packed else 1],
            vectors,
            finite,
            **variant.constants(),
            num_warps=variant.num_warps,
        )
    return Pooled(vectors, finite)
