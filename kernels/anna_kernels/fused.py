"""The Triton versions of `reference`: same signatures, one launch each, for inference on a GPU."""

import torch
import triton
import triton.language as tl

from anna_kernels.reference import check_inputs

# 8 warps hold it in 32 registers a thread, so a row up to this long is read once
MAX_BLOCK = 8192
MAX_WARPS = 8


# S differs from batch to batch: specialising on its value would compile again and gain nothing
@triton.jit(do_not_specialize=["S"])
def pool_normalise_kernel(
    hidden_ptr: tl.tensor,
    last_ptr: tl.tensor,
    S: tl.int32,
    output_ptr: tl.tensor,
    D: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write one row of (B, D) a program, the grid being (B,); inputs and output are contiguous.

    An index outside 0..S-1 reads nothing and gives a row of NaN. Pointers of inputs, then int32,
    then pointers of outputs: the order in which TensorRT's plugins pass them.
    """
    # int64: B * S * D passes 2**31
    row = tl.program_id(0).to(tl.int64)
    last = tl.load(last_ptr + row)
    inside = (last >= 0) & (last < S)
    token_ptr = hidden_ptr + (row * S + last) * D

    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, D, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(token_ptr + columns, mask=inside & (columns < D), other=0.0)
        values = values.to(tl.float32)
        squares += values * values
    # Triton's plain sqrt and division are approximate, and its plain maximum drops a NaN
    norm = tl.sqrt_rn(tl.sum(squares, axis=0))
    norm = tl.maximum(norm, EPS, propagate_nan=tl.PropagateNan.ALL)
    norm = tl.where(inside, norm, float("nan"))

    # where BLOCK covers the row the compiler drops this second load for the first one's registers
    for start in range(0, D, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(token_ptr + columns, mask=inside & (columns < D), other=0.0)
        values = tl.div_rn(values.to(tl.float32), norm)
        tl.store(output_ptr + row * D + columns, values, mask=columns < D)


def tiling(dim: int) -> tuple[int, int]:
    """Return how many columns one step of a kernel covers and how many warps share them."""
    block = min(triton.next_power_of_2(dim), MAX_BLOCK)
    return block, max(1, min(MAX_WARPS, block // 512))


def pool_normalise(hidden: torch.Tensor, last: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    """Take each sequence's last token and scale it to unit length, on a GPU.

    Args:
        hidden: (B, S, D) final hidden states; bf16, fp16 or fp32. Only B * D values of a contiguous
            tensor are read; any other is copied whole first, as the kernel takes no strides.
        last: (B,) int64 index of the last real token, 0 <= last < S. An index outside gives a row
            of NaN: to refuse it here would wait for the device.
        eps: Smallest norm divided by, so a zero vector stays zero. Each value compiles once.

    Returns:
        (B, D) float32, rows of unit L2 length; no gradient flows through them.

    Raises:
        TypeError: An input is no tensor or has another dtype.
        ValueError: Shapes or devices do not agree, eps is no norm, a gradient is wanted, or the
            tensors are not on a GPU.

    Source: `anna_kernels.reference.pool_normalise`.
    """
    check_inputs(hidden, last, eps)
    if hidden.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "expected hidden without gradient, found requires_grad; "
            "train with anna_kernels.reference.pool_normalise, or run under torch.no_grad()"
        )
    if not hidden.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"expected tensors on a CUDA device, found {hidden.device}; "
            "anna_kernels.reference.pool_normalise runs anywhere"
        )
    batch, seq, dim = hidden.shape
    # TensorRT passes no strides, so the kernel has none; hidden states leave a model contiguous
    hidden, last = hidden.contiguous(), last.contiguous()
    output = torch.empty(batch, dim, dtype=torch.float32, device=hidden.device)
    block, num_warps = tiling(dim)
    with torch.cuda.device_of(hidden):
        pool_normalise_kernel[(batch,)](
            hidden, last, seq, output, D=dim, EPS=float(eps), BLOCK=block, num_warps=num_warps
        )
    return output
