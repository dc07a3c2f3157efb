"""Texts in, vectors out: one encoder over any backend."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from anna_export.errors import DamagedError, InputError
from anna_export.progress import Progress
from anna_export.prompts import Prompts
from anna_export.spec import EmbeddingSpec
from anna_export.tokenise import TokenBatch, Tokeniser, require_text

# Padding allowed in one call: this share of the tokens computed, or this many, whichever is more.
MAX_WASTE = 0.05
FREE_WASTE_TOKENS = 32
# Prices of a batch in tokens: the dearer it is, the fewer there are. Free batches need no padding.
_RUN_COSTS = (256, 128, 64, 32, 16, 8, 4, 2, 1, 0)


class Backend(Protocol):
    """One runtime with one model loaded."""

    name: str  # such as "ort"
    arithmetic: str  # what it computes in, for verdicts: "fp32 on CPU"
    spec: EmbeddingSpec

    def run(self, batch: TokenBatch) -> np.ndarray:
        """Return (B, spec.dim) float32 rows of unit L2 length."""
        ...


class Encoder:
    """Tokeniser, prompts and batching over a backend.

    Args:
        backend: What computes.
        tokeniser: The model's tokenizer under its contract.
        prompts: The model's named prompts.
        batch_tokens: Most tokens, padding included, that are computed at once; a single longer
            text still is.
    """

    def __init__(
        self,
        backend: Backend,
        tokeniser: Tokeniser,
        prompts: Prompts | None = None,
        batch_tokens: int = 4096,
    ) -> None:
        self.backend = backend
        self.tokeniser = tokeniser
        self.prompts = prompts or Prompts()
        self.batch_tokens = batch_tokens

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.backend.spec.dim

    def encode(
        self,
        texts: str | Sequence[str],
        prompt: str | None = None,
        *,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Embed texts; equal texts are computed once.

        Args:
            texts: One text, or N of them.
            prompt: Name of a prompt of the model; None for its default, if it has one; "" for none.
            progress: Told after every batch how many distinct texts are done.

        Returns:
            (D,) for one text, else (N, D), float32, in the order given, rows of unit L2 length.

        Raises:
            InputError: For an unknown prompt or something that is not text.
            DamagedError: If a vector is not finite.
        """
        if isinstance(texts, str):
            return self.encode([texts], prompt, progress=progress)[0]
        require_text(texts)
        first: dict[str, int] = {}
        for index, text in enumerate(texts):
            first.setdefault(text, index)
        rows = self.tokeniser.ids(list(first), self.prompts.find(prompt))
        vectors = self._encode(rows, list(first.values()), progress)
        if len(first) == len(texts):
            return vectors
        place = {text: index for index, text in enumerate(first)}
        return vectors[[place[text] for text in texts]]

    def encode_ids(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Embed token id rows as they are; (N, D) float32 in the order given.

        Raises:
            InputError: If a row is longer than the model's longest sequence.
        """
        longest = max(map(len, rows), default=0)
        if longest > self.tokeniser.contract.max_tokens:
            raise InputError(
                f"expected at most {self.tokeniser.contract.max_tokens} tokens a row, found "
                f"{longest}; cut them, or export with a larger --max-tokens"
            )
        return self._encode(rows, range(len(rows)), None)

    def _encode(
        self, rows: Sequence[Sequence[int]], names: Sequence[int], progress: Progress | None
    ) -> np.ndarray:
        """Embed rows; names are the indices they have for the caller."""
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        done = 0
        for members in batches_by_length([len(row) for row in rows], self.batch_tokens):
            found = self.backend.run(self.tokeniser.batch([rows[index] for index in members]))
            finite = np.isfinite(found).all(axis=1)
            if not finite.all():
                raise DamagedError(
                    f"expected finite vectors, found NaN or infinity for text "
                    f"{names[members[int(np.argmin(finite))]]} in {self.backend.arithmetic}; "
                    "export in a wider precision"
                )
            vectors[members] = found
            done += len(members)
            if progress is not None:
                progress(done, len(rows))
        return vectors


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Split texts into batches of similar length, longest first.

    As few batches as possible, as long as padding is at most MAX_WASTE of what is computed for
    all of them, or FREE_WASTE_TOKENS in all.

    Args:
        lengths: Tokens of each text.
        batch_tokens: Most tokens of a batch, padding included; a longer text goes alone.

    Returns:
        Indices into lengths; each index once.
    """
    tokens = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-tokens, kind="stable")
    widths = tokens[order]
    starts: list[int] = []
    ends: list[int] = []
    for run_cost in _RUN_COSTS:
        ends = _cheapest_ends(widths, batch_tokens, run_cost)
        starts = [0, *ends[:-1]][: len(ends)]
        computed = (widths[starts] * np.subtract(ends, starts)).sum()
        if computed - widths.sum() <= max(MAX_WASTE * computed, FREE_WASTE_TOKENS):
            break
    return [order[start:end].tolist() for start, end in zip(starts, ends, strict=True)]


def _cheapest_ends(widths: np.ndarray, batch_tokens: int, run_cost: int) -> list[int]:
    """Return where batches end so that tokens computed plus run_cost a batch is least.

    Args:
        widths: (N,) tokens of each text, longest first.
        batch_tokens: Most tokens of a batch, padding included.
        run_cost: What a batch costs by itself, in tokens.
    """
    count = len(widths)
    cost = np.full(count + 1, np.iinfo(np.int64).max)  # least cost of all texts before an index
    cost[0] = 0
    start_of = np.zeros(count + 1, dtype=np.int64)  # of the batch that ends at an index
    sizes = np.arange(1, count + 1)
    for start, width in enumerate(widths):
        most = min(count - start, max(1, batch_tokens // max(1, int(width))))
        reached = slice(start + 1, start + 1 + most)
        through = cost[start] + run_cost + width * sizes[:most]
        start_of[reached] = np.where(through < cost[reached], start, start_of[reached])
        cost[reached] = np.minimum(through, cost[reached])
    ends, end = [], count
    while end > 0:
        ends.append(end)
        end = int(start_of[end])
    return ends[::-1]
