"""The range of an activation: what of its values a format is to represent."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch

from anna_export.choices import Ranges
from anna_export.quantise.calibration import Seen

PERCENTILE: Final = 99.99
# Ranges tried for the least squared error: from the largest value down, 2 ** (1/4) apart.
_TRIED: Final = 24
# Values looked at where a median or an error over all would take longer than the layer itself.
_SAMPLED_VALUES: Final = 1 << 20

Round = Callable[[torch.Tensor, Seen], torch.Tensor]


def see(x: torch.Tensor, ranges: Ranges, round_input: Round) -> Seen:
    """Measure one linear input and choose its range.

    Args:
        x: (N, in) fp32, one row a token.
        ranges: Max takes the largest absolute value, percentile the 99.99th, MSE the one whose
            rounded values are nearest to the true ones.
        round_input: How the format rounds, given a range.
    """
    low, high = x.aminmax()
    amax = max(-float(low), float(high))
    sampled = _sample(x)
    seen = Seen(
        amax=amax,
        median=float(sampled.abs().median()),
        clip=amax,
        # x is a large part of all memory: no copy of it is made
        mean_square=(torch.linalg.vector_norm(x, dim=0).square() / len(x)).cpu(),
    )
    if ranges is Ranges.PERCENTILE:
        sizes = x.abs().reshape(-1)
        above = max(1, round(sizes.numel() * (100 - PERCENTILE) / 100))
        return replace(seen, clip=float(sizes.topk(above).values[-1]))
    if ranges is Ranges.MSE:
        tried = [replace(seen, clip=amax * 2 ** (-step / 4)) for step in range(_TRIED)]
        return min(
            tried, key=lambda each: float((round_input(sampled, each) - sampled).square().mean())
        )
    return seen


def _sample(x: torch.Tensor) -> torch.Tensor:
    """Take evenly spread rows, of about _SAMPLED_VALUES numbers in all."""
    step = max(1, x.numel() // _SAMPLED_VALUES)
    return x[::step]
