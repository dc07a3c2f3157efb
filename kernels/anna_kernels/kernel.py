"""The pooling kernel in Triton, and what of it is compiled in."""

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl

# 8 warps hold it in 8 registers a thread. A longer row is read a second time, from the first-level
# cache: on an H200 nearer to its memory's limit than fewer blocks with all of a row in registers.
MAX_BLOCK: Final = 2048
MAX_WARPS: Final = 8
POINTERS: Final = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


# S differs from batch to batch: specialising on its value would compile again and gain nothing
@triton.jit(do_not_specialize=["S"])
def last_token_pool_normalise_kernel(
    hidden_ptr: tl.tensor,
    last_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    S: tl.int32,
    output_ptr: tl.tensor,
    D: tl.constexpr,
    NORM_EPS: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write one row a program, the grid being (B,); inputs and outputs are contiguous.

    A row whose last token is not in 0..S-1 reads nothing and is written as NaN. Pointers of inputs,
    then int32, then the output's pointer: the order in which TensorRT's plugins pass them.
    `weight_ptr` is None in a variant without a norm.
    """
    # int64: B * S * D passes 2**31
    row = tl.program_id(0).to(tl.int64)
    last = tl.load(last_ptr + row).to(tl.int64)
    inside = (last >= 0) & (last < S)
    token_ptr = hidden_ptr + (row * S + last) * D

    squares_in = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, D, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(token_ptr + columns, mask=inside & (columns < D), other=0.0)
        values = values.to(tl.float32)
        if weight_ptr is not None:
            squares_in += values * values
            weight = tl.load(weight_ptr + columns, mask=columns < D, other=0.0)
            values *= weight.to(tl.float32)
        squares += values * values
    # Triton's plain square root and division are approximate, and its plain maximum drops a NaN
    length = tl.sqrt_rn(tl.sum(squares, axis=0))
    factor = 1.0
    if weight_ptr is not None:
        factor = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(squares_in, axis=0) / D + NORM_EPS))
        length *= factor
    divisor = tl.maximum(length, EPS, propagate_nan=tl.PropagateNan.ALL)
    # one division a row: one a value would take more instructions than all the rest
    factor = tl.where(inside, tl.div_rn(factor, divisor), float("nan"))

    # where BLOCK covers the row the compiler drops these loads for the first ones' registers
    for start in range(0, D, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(token_ptr + columns, mask=inside & (columns < D), other=0.0)
        values = values.to(tl.float32)
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + columns, mask=columns < D, other=0.0)
            values *= weight.to(tl.float32)
        tl.store(output_ptr + row * D + columns, values * factor, mask=columns < D)


@dataclass(frozen=True, slots=True)
class Variant:
    """What of a call is compiled into the kernel.

    Args:
        dim: D, the width of the hidden states.
        dtype: Their type.
        last_dtype: The type of the indices of last tokens.
        weight_dtype: The final norm's type; None without one.
        norm_eps: What it adds to the mean of squares.
        eps: Smallest length divided by.
    """

    dim: int
    dtype: torch.dtype
    last_dtype: torch.dtype = torch.int64
    weight_dtype: torch.dtype | None = None
    norm_eps: float = 0.0
    eps: float = 1e-12

    @property
    def num_warps(self) -> int:
        """How many warps share a row."""
        return max(1, min(MAX_WARPS, self.block // 256))

    @property
    def block(self) -> int:
        """How many columns one step covers."""
        return min(triton.next_power_of_2(self.dim), MAX_BLOCK)

    def parameters(self) -> dict[str, str | None]:
        """Return the kernel's parameters in order, with their types; None for those left out."""
        return {
            "hidden_ptr": POINTERS[self.dtype],
            "last_ptr": POINTERS[self.last_dtype],
            "weight_ptr": None if self.weight_dtype is None else POINTERS[self.weight_dtype],
            "S": "i32",
            "output_ptr": POINTERS[torch.float32],
        }

    def constants(self) -> dict[str, Any]:
        """Return what is compiled in."""
        return {
            "D": self.dim,
            "NORM_EPS": float(self.norm_eps),
            "EPS": float(self.eps),
            "BLOCK": self.block,
        }
