"""The tables of rotary embedding."""

import math
from collections.abc import Callable, Mapping
from typing import Final

import onnx_ir as ir
import torch

from anna_export.graph.tensors import as_ir
from anna_export.spec import QueryScaling, Rotary, RotaryKind, RotaryScaling


def rotary_tables(
    name: str, rotary: Rotary, head_dim: int, rows: int, queries: QueryScaling | None = None
) -> tuple[ir.LazyTensor, ir.LazyTensor]:
    """Return cosines and sines, (rows, head_dim / 2); in fp32, as the fallback graph needs.

    Args:
        name: What stands in front of ".cos" and ".sin".
        rotary: Base and scaling.
        head_dim: Length of what is turned.
        rows: Positions.
        queries: How what is turned grows with its position: the tables are multiplied by it.
    """

    def table(function: Callable[[torch.Tensor], torch.Tensor], suffix: str) -> ir.LazyTensor:
        def compute() -> ir.Tensor:
            # in fp32, as the reference does: the angle's own rounding is part of the model
            positions = torch.arange(rows).float()
            values = function(torch.outer(positions, frequencies(rotary, head_dim)))
            values = values * (rotary.scaling.attention_factor if rotary.scaling else 1.0)
            if queries is not None:
                values = values * _growth(queries, positions)[:, None]
            return as_ir(values, name + suffix)

        shape = ir.Shape([rows, head_dim // 2])
        return ir.LazyTensor(compute, ir.DataType.FLOAT, shape, name=name + suffix)

    return table(torch.cos, ".cos"), table(torch.sin, ".sin")


def frequencies(rotary: Rotary, head_dim: int) -> torch.Tensor:
    """Return (head_dim / 2,) float32 radians a position."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    plain = 1.0 / rotary.theta**steps
    if rotary.scaling is None:
        return plain
    return _RULES[rotary.scaling.kind](plain, rotary.scaling, rotary.theta)


def _growth(queries: QueryScaling, positions: torch.Tensor) -> torch.Tensor:
    return 1 + queries.beta * torch.log(1 + torch.floor(positions / queries.positions))


def _linear(plain: torch.Tensor, scaling: RotaryScaling, _: float) -> torch.Tensor:
    return plain / scaling.factor


def _llama3(plain: torch.Tensor, scaling: RotaryScaling, _: float) -> torch.Tensor:
    """Stretch waves longer than the original positions by low, blend down to those by high.

    Source: Llama 3.1, as transformers' modeling_rope_utils has it.
    """
    assert scaling.original_positions is not None
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_positions * plain / (2 * math.pi)  # over the original positions
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - share) * plain / scaling.factor + share * plain


def _yarn(plain: torch.Tensor, scaling: RotaryScaling, theta: float) -> torch.Tensor:
    """Keep what turns often over the original positions, stretch what hardly does, blend between.

    Source: YaRN (arXiv 2309.00071), as transformers' modeling_rope_utils has it.
    """
    positions, half = scaling.original_positions, len(plain)
    assert positions is not None

    def channel(turns: float) -> float:
        wave = positions / (turns * 2 * math.pi)
        return half * math.log(wave) / math.log(theta)

    first, last = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    # the last channel counts in numbers of a head, not in pairs of them
    first, last = max(first, 0), min(last, 2 * half - 1)
    stretched = ((torch.arange(half).float() - first) / max(last - first, 0.001)).clamp(0, 1)
    return plain / scaling.factor * stretched + plain * (1 - stretched)


_RULES: Final[Mapping[RotaryKind, Callable[[torch.Tensor, RotaryScaling, float], torch.Tensor]]] = {
    RotaryKind.LINEAR: _linear,
    RotaryKind.LLAMA3: _llama3,
    RotaryKind.YARN: _yarn,
}
