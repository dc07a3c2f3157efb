"""Rounding to 8 bits in one symmetric scale a row."""

from typing import Final

import torch

LARGEST: Final = 127
# A row of zeros has no scale of its own.
SMALLEST: Final = 1e-30


def round_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whole numbers in -127..127, as fp32, and the scales they are to be multiplied by.

    Args:
        x: (…, in) fp32.

    Returns:
        (…, in) codes and (…, 1) scales, both fp32.
    """
    scale = x.abs().amax(dim=-1, keepdim=True).clamp_(min=SMALLEST) / LARGEST
    return (x / scale).round_(), scale
