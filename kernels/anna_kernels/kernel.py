"""The pooling kernel in Triton, and what of it is compiled in."""

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl

from anna_kernels.pooling import Output

# 8 warps hold it in 8 registers a thread. A longer row is read a second time, from the first-level
# cache: on an H200 nearer to its memory's limit than fewer blocks with all of a row in registers.
MAX_BLOCK: Final = 2048
MAX_WARPS: Final = 8
# tokens of a mask that are looked at together
MASK_BLOCK: Final = 1024
POINTERS: Final = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}


@triton.jit
def last_token(
    tokens_ptr: tl.tensor,
    row: tl.tensor,
    S: tl.int32,
    FORM: tl.constexpr,
    MASK_BLOCK: tl.constexpr,
) -> tl.tensor:
    """Return the index of a row's last token over all rows' tokens, and -1 where there is none."""
    if FORM == "offsets":
        start = tl.load(tokens_ptr + row).to(tl.int64)
        end = tl.load(tokens_ptr + row + 1).to(tl.int64)
        token = end - 1
        inside = (start >= 0) & (start < end) & (end <= S)
    else:
        if FORM == "mask":
            last = -1
            for begin in range(0, S, MASK_BLOCK):
                places = begin + tl.arange(0, MASK_BLOCK)
                real = tl.load(tokens_ptr + row * S + places, mask=places < S, other=0)
                last = tl.maximum(last, tl.max(tl.where(real != 0, places, -1), axis=0))
        else:
            last = tl.load(tokens_ptr + row).to(tl.int64)
            if FORM == "lengths":
                last -= 1
        token = row * S + last
        inside = (last >= 0) & (last < S)
    return tl.where(inside, token, -1)


# S differs from batch to batch: specialising on its value would compile again and gain nothing
@triton.jit(do_not_specialize=["S"])
def last_token_pool_normalise_kernel(
    hidden_ptr: tl.tensor,
    tokens_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    ranges_ptr: tl.tensor,
    S: tl.int32,
    output_ptr: tl.tensor,
    finite_ptr: tl.tensor,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    FORM: tl.constexpr,
    PACKED: tl.constexpr,
    OFFSET: tl.constexpr,
    NORM_EPS: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
    MASK_BLOCK: tl.constexpr,
) -> None:
    """Write one row a program, the grid being (B,); inputs and outputs are contiguous.

    A row without a last token inside reads nothing and is not finite. S is T where tokens are
    offsets. Pointers of inputs, then int32, then pointers of outputs: the order in which
    TensorRT's plugins pass them. Pointers that a variant does not have are None.
    """
    # int64: B * S * D passes 2**31
    row = tl.program_id(0).to(tl.int64)
    token = last_token(tokens_ptr, row, S, FORM, MASK_BLOCK)
    inside = token >= 0
    token_ptr = hidden_ptr + token * D
    SEEN: tl.constexpr = WIDTH if weight_ptr is None else D

    all_squares = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, SEEN, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(token_ptr + columns, mask=inside & (columns < SEEN), other=0.0)
        values = values.to(tl.float32)
        if weight_ptr is not None:
            all_squares += values * values
            weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0)
            values *= weight.to(tl.float32)
        squares += values * values
    # Triton's plain square root and division are approximate, and its plain maximum drops a NaN
    length = tl.sqrt_rn(tl.sum(squares, axis=0))
    factor = 1.0
    if weight_ptr is not None:
        factor = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(all_squares, axis=0) / D + NORM_EPS))
        length *= factor
    finite = inside & (tl.abs(length) < float("inf"))
    if finite_ptr is not None:
        tl.store(finite_ptr + row, finite)
    divisor = tl.maximum(length, EPS, propagate_nan=tl.PropagateNan.ALL)
    # one division a row: one a value would take more instructions than all the rest
    factor = tl.where(inside, tl.div_rn(factor, divisor), float("nan"))

    # where BLOCK covers the row the compiler drops these loads for the first ones' registers
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(token_ptr + columns, mask=inside & (columns < SEEN), other=0.0)
        values = values.to(tl.float32)
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0)
            values *= weight.to(tl.float32)
        values *= factor
        if PACKED:
            write_bits(output_ptr, row, start, values, finite, WIDTH, OFFSET, BLOCK)
        elif ranges_ptr is not None:
            write_codes(output_ptr, row, columns, values, finite, ranges_ptr, WIDTH, OFFSET)
        else:
            values = values.to(output_ptr.dtype.element_ty)
            tl.store(output_ptr + row * WIDTH + columns, values, mask=columns < WIDTH)


@triton.jit
def write_bits(
    output_ptr: tl.tensor,
    row: tl.tensor,
    start: tl.int32,
    values: tl.tensor,
    finite: tl.tensor,
    WIDTH: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write one bit a value, eight in a byte."""
    BYTES: tl.constexpr = (WIDTH + 7) // 8
    bits = tl.reshape((values > 0).to(tl.int32), [BLOCK // 8, 8])
    # columns past the width read as 0, and leave their bits so
    packed = tl.sum(bits << (7 - tl.arange(0, 8))[None, :], axis=1) - OFFSET
    packed = tl.where(finite, packed, 0).to(output_ptr.dtype.element_ty)
    places = start // 8 + tl.arange(0, BLOCK // 8)
    tl.store(output_ptr + row * BYTES + places, packed, mask=places < BYTES)


@triton.jit
def write_codes(
    output_ptr: tl.tensor,
    row: tl.tensor,
    columns: tl.tensor,
    values: tl.tensor,
    finite: tl.tensor,
    ranges_ptr: tl.tensor,
    WIDTH: tl.constexpr,
    OFFSET: tl.constexpr,
) -> None:
    """Write each value as its step of 256 between the smallest and the largest."""
    smallest = tl.load(ranges_ptr + columns, mask=columns < WIDTH, other=0.0)
    largest = tl.load(ranges_ptr + WIDTH + columns, mask=columns < WIDTH, other=0.0)
    step = (largest - smallest) / 255.0
    # plain division is enough: the order of a sum moves a value on a border to the next step too
    codes = tl.floor((values - smallest) / tl.where(step == 0, 1.0, step))
    codes = tl.minimum(tl.maximum(codes, 0.0), 255.0) - OFFSET
    codes = tl.where(finite, codes, 0.0)
    codes = codes.to(tl.int32).to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + row * WIDTH + columns, codes, mask=columns < WIDTH)


@dataclass(frozen=True, slots=True)
class Variant:
    """What of a call is compiled into the kernel.

    Args:
        dim: D, the width of the hidden states.
        dtype: Their type.
        form: How tokens are given: that of Last, Lengths, Mask or Offsets.
        tokens_dtype: Their type.
        width: Dimensions kept; None for all.
        weight_dtype: The final norm's type; None without one.
        norm_eps: What it adds to the mean of squares.
        output: What a vector is written as.
        flagged: Whether it is written which vectors are finite.
        eps: Smallest length divided by.
    """

    dim: int
    dtype: torch.dtype
    form: str = "last"
    tokens_dtype: torch.dtype = torch.int64
    width: int | None = None
    weight_dtype: torch.dtype | None = None
    norm_eps: float = 0.0
    output: Output = Output.FLOAT32
    flagged: bool = False
    eps: float = 1e-12

    @property
    def num_warps(self) -> int:
        """How many warps share a row."""
        return max(1, min(MAX_WARPS, self.block // 256))

    @property
    def block(self) -> int:
        """How many columns one step covers."""
        columns = self.dim if self.weight_dtype else self.width or self.dim
        # at least a byte of bits
        return max(8, min(triton.next_power_of_2(columns), MAX_BLOCK))

    def parameters(self) -> dict[str, str | None]:
        """Return the kernel's parameters in order, with their types; None for those left out."""
        return {
            "hidden_ptr": POINTERS[self.dtype],
            "tokens_ptr": POINTERS[self.tokens_dtype],
            "weight_ptr": None if self.weight_dtype is None else POINTERS[self.weight_dtype],
            "ranges_ptr": POINTERS[torch.float32] if self.output.is_scaled else None,
            "S": "i32",
            "output_ptr": POINTERS[self.output.dtype],
            "finite_ptr": POINTERS[torch.bool] if self.flagged else None,
        }

    def constants(self) -> dict[str, Any]:
        """Return what is compiled in."""
        return {
            "D": self.dim,
            "WIDTH": self.width or self.dim,
            "FORM": self.form,
            "PACKED": self.output.is_packed,
            "OFFSET": self.output.offset,
            "NORM_EPS": float(self.norm_eps),
            "EPS": float(self.eps),
            "BLOCK": self.block,
            "MASK_BLOCK": MASK_BLOCK,
        }
