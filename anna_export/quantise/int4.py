"""int4, weight-only: 4-bit weights in blocks of 32 inputs, each with a scale and a zero point.

On a CPU the kernel rounds activations to 8 bits, one scale a block of a token: a text's vector does
not depend on its neighbours. benchmarks/decided/int4.py compares block sizes, algorithms and
arithmetic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir
import torch

from anna_export.graph.emitter import Emitter
from anna_export.graph.passes.cpu_attention import CpuAttention
from anna_export.graph.passes.matmul_nbits import MatMulNBits
from anna_export.quantise.calibration import ActivationStats
from anna_export.quantise.embedding import Int8PerRow
from anna_export.quantise.linear import Layout, LinearInput, Stored
from anna_export.quantise.scheme import Scheme, Thresholds
from anna_export.spec import Precision

_LARGEST: Final = 15
_LARGEST_ACTIVATION: Final = 127
# A block of zeros has no scale of its own.
_SMALLEST: Final = 1e-30
# Ranges tried, as shares of the whole one, each with the nearest zero point and its neighbours:
# twice as many would take less than 2 % more off the error.
_SHARES: Final = (1.06, 1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
_NEIGHBOURS: Final = (0, -1, 1)
# What an input counts at least, as a share of the mean: calibration may not have seen it at work.
_LEAST_IMPORTANCE: Final = 0.01
# Numbers worked on at once, so that all of a search stays in cache.
_CHUNK_NUMBERS: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Int4Blocks:
    """Asymmetric 4-bit weights, 8-bit activations, both in blocks of inputs.

    Args:
        block: Inputs that share a scale and a zero point: 32, 64, 128 or 256. Half as many where
            there would be an odd number of blocks: two zero points lie in a byte.
    """

    block: int = 32

    def block_of(self, inputs: int) -> int:
        """Return the block of a layer with this many inputs."""
        return self.block if inputs % (2 * self.block) == 0 else self.block // 2

    def layout(self, outputs: int, inputs: int) -> Layout:
        """The weight as it is, (out, in), and a scale and a zero point a block."""
        blocks = inputs // self.block_of(inputs)
        return {
            "": (ir.DataType.UINT4, (outputs, inputs)),
            "_scale": (ir.DataType.FLOAT, (outputs, blocks)),
            "_zero": (ir.DataType.UINT4, (outputs, blocks)),
        }

    def quantize(self, weight: torch.Tensor, stats: ActivationStats) -> Stored:
        """Search each block's scale and zero point for the least error that inputs will feel."""
        assert stats.mean_square is not None, "int4 weights follow what calibration saw"
        block = self.block_of(weight.shape[1])
        importance = importance_of(stats.mean_square.to(weight.device))
        importance = importance.reshape(-1, block).T[:, None]
        parts: dict[str, list[torch.Tensor]] = {"": [], "_scale": [], "_zero": []}
        for rows in weight.split(max(1, _CHUNK_NUMBERS // weight.shape[1])):
            # a block along the first axis: sums over it then run through whole rows of memory
            blocks = rows.reshape(len(rows), -1, block).permute(2, 0, 1)
            blocks = blocks.clone(memory_format=torch.contiguous_format)
            scale, zero = search(blocks, importance)
            codes = blocks.div_(scale).round_().add_(zero).clamp_(0, _LARGEST)
            parts[""].append(_pack(codes.to(torch.uint8).permute(1, 2, 0).reshape(rows.shape)))
            parts["_scale"].append(scale)
            parts["_zero"].append(_pack(zero.to(torch.uint8)))
        return {suffix: torch.cat(tensors) for suffix, tensors in parts.items()}

    def dequantize(self, stored: Stored) -> torch.Tensor:
        """Return (out, in) fp32."""
        weight = _unpack(stored[""]).float()
        blocks = weight.reshape(*stored["_scale"].shape, -1)  # a view
        blocks -= _unpack(stored["_zero"])[:, :, None]
        blocks *= stored["_scale"][:, :, None]
        return weight

    def fake_quantize_input(
        self, x: torch.Tensor, stats: ActivationStats | None = None
    ) -> torch.Tensor:
        """Round each block of a token in its own scale, as ONNX Runtime's kernel does."""
        blocks = x.reshape(*x.shape[:-1], -1, self.block_of(x.shape[-1]))
        largest = blocks.abs().amax(dim=-1, keepdim=True).clamp_(min=_SMALLEST)
        codes = (blocks * (_LARGEST_ACTIVATION / largest)).round_()
        return (codes * (largest / _LARGEST_ACTIVATION)).reshape(x.shape)

    def skip_reason(self, inputs: int, stats: ActivationStats) -> str | None:
        """Keep what does not divide into blocks."""
        if inputs % self.block == 0:
            return None
        return f"{inputs} inputs are no multiple of {self.block}, the block of int4"

    def emit_input(self, into: Emitter, x: LinearInput) -> list[ir.Value]:
        """Leave the input as it is: where it is rounded, the kernel does it."""
        return [x.value]

    def emit_linear(
        self, into: Emitter, x: list[ir.Value], weight: Mapping[str, ir.Value]
    ) -> ir.Value:
        """Multiply by what the codes stand for."""
        shape = weight[""].shape
        assert shape is not None
        dequantized = into.op(
            "DequantizeLinear",
            weight[""],
            weight["_scale"],
            weight["_zero"],
            axis=1,
            block_size=self.block_of(shape.numpy()[1]),
        )
        return into.op("MatMul", *x, into.op("Transpose", dequantized, perm=[1, 0]))


def importance_of(mean_square: torch.Tensor) -> torch.Tensor:
    """Return what an error in the weights of each input counts, (in,), 1 in the mean."""
    mean = mean_square.mean()
    if mean == 0:
        return torch.ones_like(mean_square)
    return mean_square / mean + _LEAST_IMPORTANCE


def search(blocks: torch.Tensor, importance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find scales and zero points, (R, G) fp32.

    For codes c, less their zero point, the best scale is sum(h w c) / sum(h c c), and takes
    sum(h w c) ** 2 / sum(h c c) off the error; the candidate that takes off most is chosen.
    Rounding to nearest over the whole range is one of them, so that no block gets worse than it.

    Args:
        blocks: (block, R, G) fp32 weights.
        importance: (block, 1, G) h, what an error counts.
    """
    lowest, highest = blocks.amin(dim=0).clamp_(max=0), blocks.amax(dim=0).clamp_(min=0)
    step = ((highest - lowest) / _LARGEST).clamp_(min=_SMALLEST)
    # counted in steps of the whole range, no sum over- or underflows
    counted = blocks / step
    middle = (lowest + highest) / (2 * step)
    weighed = counted * importance
    best = torch.full_like(step, -1)
    scale, zero = torch.ones_like(step), torch.zeros_like(step)
    for share in _SHARES:
        rounded = (counted / share).round_()
        nearest = (_LARGEST / 2 - middle / share).round_()
        for neighbour in _NEIGHBOURS:
            point = (nearest + neighbour).clamp_(0, _LARGEST)
            codes = rounded.clamp(-point, _LARGEST - point)
            along = (weighed * codes).sum(dim=0)
            size = (codes.square_() * importance).sum(dim=0).clamp_(min=_SMALLEST)
            gain = along.square() / size
            better = gain > best
            best = torch.where(better, gain, best)
            scale = torch.where(better & (along > 0), along / size, scale)
            zero = torch.where(better, point, zero)
    return scale.mul_(step), zero


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """Put two numbers of 4 bits in a byte, the first in its lower half."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)


SCHEME = Scheme(
    Precision.INT4,
    compute_dtype=Precision.FP32,
    cpu_passes=(MatMulNBits(), CpuAttention()),
    cpu_compute_label="4-bit weights by 8-bit activations, fp32 elsewhere",
    thresholds=Thresholds(max_loss=0.05, batch1_min_cosine=0.9999),
    linear=Int4Blocks(),
    embedding=Int8PerRow(),
    served_bytes=0.75,  # 4 bits, and of each block an fp32 scale and sum
)
