"""Statistics of one linear input: what a format's scale, and its weights, are chosen by."""

from typing import Final

import torch

from anna_export.quantise.calibration import ActivationStats

# Values looked at where a median over all would take longer than the layer itself.
_SAMPLED_VALUES: Final = 1 << 20


def collect_stats(x: torch.Tensor) -> ActivationStats:
    """Measure one linear input: (N, in) fp32, one row a token."""
    low, high = x.aminmax()
    amax = max(-float(low), float(high))
    return ActivationStats(
        amax=amax,
        median=float(_sample(x).abs().median()),
        # percentiles lose more, and least squares choose the same or no better
        clip_amax=amax,
        # x is a large part of all memory: no copy of it is made
        mean_square=(torch.linalg.vector_norm(x, dim=0).square() / len(x)).cpu(),
    )


def _sample(x: torch.Tensor) -> torch.Tensor:
    """Take evenly spread rows, of about _SAMPLED_VALUES numbers in all."""
    step = max(1, x.numel() // _SAMPLED_VALUES)
    return x[::step]
