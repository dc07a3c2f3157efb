"""Which texts are computed together: of one prefix, of similar length, with little padding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from anna_export.text.prefix import Prefix

# Padding allowed in one call: this share of the tokens computed, or this many, whichever is more.
MAX_WASTE = 0.05
FREE_WASTE_TOKENS = 32
# Prices of a batch in tokens: the dearer it is, the fewer there are. Free batches need no padding.
_RUN_COSTS = (256, 128, 64, 32, 16, 8, 4, 2, 1, 0)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The most that is computed at once; a larger text still goes by itself. Defaults suit a CPU.

    Args:
        tokens: Tokens, padding included.
        pairs: With a cached prefix, pairs of a token and one it attends to, which bounds the
            memory of their attention scores; None where no scores are held.
        single: With a cached prefix, a text of more tokens goes at batch size 1, where that is
            faster; None where it is not.
    """

    tokens: int = 4096
    pairs: int | None = 1 << 19
    single: int | None = 256

    def rows(self, width: int, prefix: int) -> int:
        """Return the most texts of a width in a batch, with so many tokens cached in front."""
        width = max(1, width)
        texts = self.tokens // width
        if prefix and self.single is not None and width > self.single:
            return 1
        if prefix and self.pairs is not None:
            texts = min(texts, self.pairs // (width * (prefix + width)))
        return max(1, texts)


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    """A text's token ids: the cached prefix that it starts with, if any, and the ids after it.

    Args:
        ids: Those after the prefix.
        prefix: What precedes them.
        prompt_tokens: Tokens at the start, the prefix's among them, that pooling leaves out.
    """

    ids: Sequence[int]
    prefix: Prefix | None = None
    prompt_tokens: int = 0

    def joined(self) -> list[int]:
        """Return all ids, the prefix's first."""
        return [*(self.prefix.ids if self.prefix is not None else ()), *self.ids]


def by_prefix(sequences: Sequence[TokenSequence]) -> list[list[int]]:
    """Group sequences by their cached prefix; indices, each once."""
    groups: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        groups.setdefault(id(sequence.prefix), []).append(index)
    return list(groups.values())


def batches(sequences: Sequence[TokenSequence], limits: BatchLimits) -> list[list[int]]:
    """Split sequences into batches of one prefix and similar length; indices, each once."""
    split = []
    for members in by_prefix(sequences):
        prefix = sequences[members[0]].prefix
        lengths = [len(sequences[index].ids) for index in members]
        for batch in batches_by_length(lengths, limits, len(prefix) if prefix else 0):
            split.append([members[index] for index in batch])
    return split


def batches_by_length(
    lengths: Sequence[int], limits: BatchLimits, prefix: int = 0
) -> list[list[int]]:
    """Split texts into batches of similar length, longest first.

    As few batches as possible, as long as padding is at most MAX_WASTE of what is computed for
    all of them, or FREE_WASTE_TOKENS in all.

    Args:
        lengths: Tokens of each text.
        limits: What a batch holds, at most.
        prefix: Tokens in front of every text that are not computed.

    Returns:
        Indices into lengths; each index once.
    """

    def most(width: int) -> int:
        return limits.rows(width, prefix)

    tokens = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-tokens, kind="stable")
    widths = tokens[order]
    starts: list[int] = []
    ends: list[int] = []
    for run_cost in _RUN_COSTS:
        ends = _cheapest_ends(widths, most, run_cost)
        starts = [0, *ends[:-1]][: len(ends)]
        computed = (widths[starts] * np.subtract(ends, starts)).sum()
        if computed - widths.sum() <= max(MAX_WASTE * computed, FREE_WASTE_TOKENS):
            break
    return [order[start:end].tolist() for start, end in zip(starts, ends, strict=True)]


def _cheapest_ends(widths: np.ndarray, most: Callable[[int], int], run_cost: int) -> list[int]:
    """Return where batches end so that tokens computed plus run_cost a batch is least.

    Args:
        widths: (N,) tokens of each text, longest first.
        most: Texts of a batch, at most, by its width.
        run_cost: What a batch costs by itself, in tokens.
    """
    count = len(widths)
    cost = np.full(count + 1, np.iinfo(np.int64).max)  # least cost of all texts before an index
    cost[0] = 0
    start_of = np.zeros(count + 1, dtype=np.int64)  # of the batch that ends at an index
    sizes = np.arange(1, count + 1)
    for start, width in enumerate(widths):
        fitting = min(count - start, most(int(width)))
        reached = slice(start + 1, start + 1 + fitting)
        through = cost[start] + run_cost + width * sizes[:fitting]
        start_of[reached] = np.where(through < cost[reached], start, start_of[reached])
        cost[reached] = np.minimum(through, cost[reached])
    ends, end = [], count
    while end > 0:
        ends.append(end)
        end = int(start_of[end])
    return ends[::-1]
