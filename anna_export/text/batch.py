"""Token ids padded to one width: what every backend computes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from anna_export.errors import ShapeError
from anna_export.text.prefix import Prefix


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token ids padded on the right, all behind one prefix, if there is one.

    Args:
        ids: (B, S) int64.
        lengths: (B,) int64, each in 1..S.
        prefix: What precedes every row.
        prompt_tokens: (B,) int64 tokens at each row's start, the prefix's among them, that pooling
            leaves out; None for none. Only heads that leave out prompts ask for it.

    Raises:
        ShapeError: If the arrays do not fit together.
    """

    ids: np.ndarray
    lengths: np.ndarray
    prefix: Prefix | None = None
    prompt_tokens: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.lengths.shape != self.ids.shape[:1]:
            raise ShapeError(
                f"expected ids (B, S) and lengths (B,), found {self.ids.shape} and "
                f"{self.lengths.shape}; build batches with TokenBatch.of_rows()"
            )
        if self.ids.dtype != np.int64 or self.lengths.dtype != np.int64:
            raise ShapeError(
                f"expected int64 ids and lengths, found {self.ids.dtype} and {self.lengths.dtype}"
            )
        counts = self.prompt_tokens
        if counts is not None and (counts.shape, counts.dtype) != (self.lengths.shape, np.int64):
            raise ShapeError(
                f"expected int64 prompt_tokens of {self.lengths.shape}, found {counts.dtype} of "
                f"{counts.shape}"
            )
        if len(self.lengths) and not (1 <= self.lengths.min() <= self.lengths.max() <= self.width):
            raise ShapeError(
                f"expected lengths in 1..{self.width}, found "
                f"{self.lengths.min()}..{self.lengths.max()}"
            )

    @classmethod
    def of_rows(
        cls,
        rows: Sequence[Sequence[int]],
        pad_id: int,
        prefix: Prefix | None = None,
        prompt_tokens: Sequence[int] | None = None,
    ) -> Self:
        """Pad token id rows on the right; the cached prefix, if one is given, precedes each."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        ids = np.full((len(rows), lengths.max(initial=1)), pad_id, dtype=np.int64)
        for row, target in zip(rows, ids, strict=True):
            target[: len(row)] = row
        counts = None if prompt_tokens is None else np.array(prompt_tokens, dtype=np.int64)
        return cls(ids, lengths, prefix, counts)

    @classmethod
    def from_mask(cls, ids: np.ndarray, mask: np.ndarray) -> Self:
        """Take ids and an attention mask of ones, then zeros, in every row.

        Raises:
            ShapeError: If a row is padded on the left, has a gap, or is empty.
        """
        if mask.shape != ids.shape or ids.ndim != 2:
            raise ShapeError(f"expected ids and mask (B, S), found {ids.shape} and {mask.shape}")
        if not np.issubdtype(ids.dtype, np.integer):
            raise ShapeError(f"expected token ids as integers, found {ids.dtype}")
        lengths = (mask != 0).sum(axis=1).astype(np.int64)
        right_padded = np.arange(mask.shape[1]) < lengths[:, None]
        wrong = np.flatnonzero(((mask != 0) != right_padded).any(axis=1) | (lengths == 0))
        if wrong.size:
            raise ShapeError(
                f"expected masks of ones then zeros (padding on the right), found "
                f"{mask[wrong[0]].tolist()[:16]} in row {wrong[0]}; pad on the right"
            )
        return cls(ids.astype(np.int64), lengths)

    @property
    def width(self) -> int:
        """S, the padded length."""
        return int(self.ids.shape[1])

    def joined(self) -> Self:
        """Return the batch with the prefix's tokens among the ids, (B, P + S)."""
        if self.prefix is None:
            return self
        front = np.broadcast_to(np.array(self.prefix.ids), (len(self.ids), len(self.prefix)))
        ids = np.concatenate([front, self.ids], axis=1)
        return type(self)(ids, self.lengths + len(self.prefix), None, self.prompt_tokens)

    @property
    def mask(self) -> np.ndarray:
        """(B, S) int64: 1 for a real token, 0 for padding."""
        return (np.arange(self.width) < self.lengths[:, None]).astype(np.int64)
