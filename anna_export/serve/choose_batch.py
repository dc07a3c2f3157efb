"""Which of the waiting texts are computed next: the oldest, and those of similar length."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from anna_export.text.batching import FREE_WASTE_TOKENS, MAX_WASTE, BatchLimits

# Of longer queues, only the texts that have waited longest are looked at.
WINDOW: Final = 512


def choose_batch(lengths: Sequence[int], limits: BatchLimits, prefix: int) -> list[int]:
    """Return the indices of the texts to compute together, always 0 among them.

    As many tokens as the limits allow, with as little padding as `text.batching` allows.

    Args:
        lengths: Tokens of each text without its cached prefix, the oldest text first.
        limits: What the batch holds, at most.
        prefix: Tokens of the cached prefix that all texts have.
    """
    order = sorted(range(min(len(lengths), WINDOW)), key=lambda index: -lengths[index])
    widths = [lengths[index] for index in order]
    before = [0, *accumulate(widths)]
    oldest = order.index(0)
    best, span = 0, (oldest, oldest + 1)
    for start in range(oldest, -1, -1):
        width = widths[start]
        end = min(len(order), start + limits.rows(width, prefix))
        if end <= oldest:
            break  # texts further to the front are longer still
        end = _last_fitting(before, start, oldest + 1, end, width)
        tokens = before[end] - before[start]
        if tokens > best and end > oldest:
            best, span = tokens, (start, end)
    return order[slice(*span)]


def _last_fitting(before: Sequence[int], start: int, least: int, most: int, width: int) -> int:
    """Return the furthest end whose padding is allowed; below `least` where none is."""
    low, high = least - 1, most
    while low < high:
        end = (low + high + 1) // 2
        computed = width * (end - start)
        waste = computed - (before[end] - before[start])
        if waste <= max(MAX_WASTE * computed, FREE_WASTE_TOKENS):
            low = end
        else:
            high = end - 1
    return low
