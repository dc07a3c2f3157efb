"""Which units are drawn together: those that share a text."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Final

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Of all pairs, the largest group may hold this share; beyond it, pairs are grouped by one text.
_LARGEST_SHARE: Final = 0.1
# Weights made at once, which bounds the memory of what is calculated with them.
_CHUNK: Final = 1 << 21


def groups_of(texts: Sequence[Hashable]) -> np.ndarray:
    """Return (N,) int64: units of the same text are of one group."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)


def groups_of_pairs(left: Sequence[Hashable], right: Sequence[Hashable]) -> np.ndarray:
    """Return (N,) int64: pairs that share a text, directly or by others, are of one group.

    Where that would join more than a tenth of them, as chains of pairs do, each pair is grouped by
    that of its texts that is in more pairs: the most dependent pairs stay together.
    """
    texts = groups_of([*left, *right])
    lefts, rights = texts[: len(left)], texts[len(left) :]
    count = int(texts.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(lefts)), (lefts, rights)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    groups = component[lefts].astype(np.int64)
    if np.bincount(groups).max(initial=0) <= max(2, _LARGEST_SHARE * len(groups)):
        return groups_of(groups.tolist())
    pairs_of = np.bincount(texts, minlength=count)
    return groups_of(np.where(pairs_of[lefts] >= pairs_of[rights], lefts, rights).tolist())


def draw(
    groups: np.ndarray, draws: int, replicates: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw groups with replacement, as many as there are, and a metric's own draws as well.

    Args:
        groups: (N,) group of each unit, from 0.
        draws: How many draws the metric makes of its own.
        replicates: B.
        rng: Where randomness comes from.

    Yields:
        Parts of (B, N) int64 and (B, draws) int64: how often each counts.
    """
    count = int(groups.max()) + 1
    part = max(1, _CHUNK // len(groups))
    for start in range(0, replicates, part):
        size = min(part, replicates - start)
        yield _counts(count, size, rng)[:, groups], _counts(draws, size, rng)


def _counts(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, count) how often each of `count` things is in as many draws of them."""
    drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
    return np.bincount(drawn.reshape(-1), minlength=size * count).reshape(size, count)
