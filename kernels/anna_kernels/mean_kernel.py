"""The mean of each row's tokens in two Triton launches: sums of slices, then the slices' mean.

A slice is SLICE tokens counted from a row's first pooled one, so neither padding, nor packing, nor
the rows beside it change the order of a sum: the bits are the same.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl

from anna_kernels.kernel import POINTERS

# one row of 4,096 tokens x 4,096 columns is 512 programs
SLICE: Final = 64
MAX_BLOCK: Final = 512
# few columns a program of the second launch, as a row has few programs there
MEAN_BLOCK: Final = 128


@triton.jit(do_not_specialize=["STRIDE", "TOKENS", "SLICES"])
def slice_sums_kernel(
    hidden_ptr: tl.tensor,
    start_ptr: tl.tensor,
    stop_ptr: tl.tensor,
    STRIDE: tl.int32,
    TOKENS: tl.int32,
    SLICES: tl.int32,
    sums_ptr: tl.tensor,
    D: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the sum of one slice and block of columns a program, the grid being (B, SLICES, _).

    Row r's tokens are r * STRIDE + start to stop: STRIDE is 0 where rows are packed. TOKENS is the
    largest stop. A slice behind a row's stop, or of a row outside, is neither read nor written.
    """
    # int64: B * S * D passes 2**31
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    start = tl.load(start_ptr + row).to(tl.int64)
    stop = tl.load(stop_ptr + row).to(tl.int64)
    inside = (start >= 0) & (start < stop) & (stop <= TOKENS)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    first = start + part.to(tl.int64) * SLICE
    count = tl.where(inside, tl.minimum(stop - first, SLICE), 0).to(tl.int32)
    token_ptr = hidden_ptr + (row * STRIDE + first) * D + columns
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(0, count):
        total += tl.load(token_ptr, mask=columns < D, other=0.0).to(tl.float32)
        token_ptr += D
    if count > 0:
        tl.store(sums_ptr + (row * SLICES + part) * D + columns, total, mask=columns < D)


@triton.jit(do_not_specialize=["TOKENS", "SLICES"])
def slice_mean_kernel(
    sums_ptr: tl.tensor,
    start_ptr: tl.tensor,
    stop_ptr: tl.tensor,
    TOKENS: tl.int32,
    SLICES: tl.int32,
    output_ptr: tl.tensor,
    D: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write one row's block of columns a program, the grid being (B, _).

    A row without a token, with one that is not there, or of more slices than SLICES is NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(start_ptr + row).to(tl.int64)
    stop = tl.load(stop_ptr + row).to(tl.int64)
    slices = (stop - start + (SLICE - 1)) // SLICE
    inside = (start >= 0) & (start < stop) & (stop <= TOKENS) & (slices <= SLICES)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(0, tl.where(inside, slices, 0).to(tl.int32)):
        slice_ptr = sums_ptr + (row * SLICES + part) * D + columns
        total += tl.load(slice_ptr, mask=columns < D, other=0.0)
    # Triton's plain division is approximate
    count = tl.where(inside, stop - start, 1).to(tl.float32)
    mean = tl.div_rn(total, tl.zeros([BLOCK], tl.float32) + count)
    mean = tl.where(inside, mean, float("nan"))
    tl.store(output_ptr + row * D + columns, mean, mask=columns < D)


@dataclass(frozen=True, slots=True)
class MeanVariant:
    """What of a call is compiled into both kernels: D, the states' type and the bounds' type."""

    dim: int
    dtype: torch.dtype
    bound_dtype: torch.dtype = torch.int64

    @property
    def blocks(self) -> tuple[int, int]:
        """How many columns a program of each launch covers."""
        width = triton.next_power_of_2(self.dim)
        return min(width, MAX_BLOCK), min(width, MEAN_BLOCK)

    @property
    def num_warps(self) -> tuple[int, int]:
        """How many warps a program of each launch has."""
        return max(1, self.blocks[0] // 256), 1

    def parameters(self) -> tuple[dict[str, str | None], dict[str, str | None]]:
        """Return each kernel's parameters in order, with their types."""
        bounds: dict[str, str | None] = dict.fromkeys(
            ("start_ptr", "stop_ptr"), POINTERS[self.bound_dtype]
        )
        sizes: dict[str, str | None] = dict.fromkeys(("TOKENS", "SLICES"), "i32")
        fp32 = POINTERS[torch.float32]
        sums = {"hidden_ptr": POINTERS[self.dtype], **bounds, "STRIDE": "i32", **sizes}
        return {**sums, "sums_ptr": fp32}, {"sums_ptr": fp32, **bounds, **sizes, "output_ptr": fp32}

    def constants(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what is compiled into each kernel."""
        first, second = self.blocks
        shared = {"D": self.dim, "SLICE": SLICE}
        return {**shared, "BLOCK": first}, {**shared, "BLOCK": second}
