"""Texts in, vectors out: one encoder over any backend."""

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Protocol

import numpy as np

from anna_export.errors import DamagedError, InputError
from anna_export.progress import Progress
from anna_export.spec import EmbeddingSpec
from anna_export.text.batch import TokenBatch
from anna_export.text.batching import BatchLimits, Row, batches
from anna_export.text.prefix import Prefix
from anna_export.text.prompts import Prompt, Prompts
from anna_export.text.tokeniser import Tokeniser, require_text

# A text that merges with a prompt's end shares all of its prefix but these tokens, or fewer; one
# that shares less, or not even half of it, has another prompt.
_BORDER_TOKENS = 8
# In front of a text this many times as long, computing a prefix again costs no more than using it.
_WORTH = 16


class Backend(Protocol):
    """One runtime with one model loaded."""

    name: str  # such as "ort"
    compute_label: str  # what it computes in, for verdicts: "fp32 on CPU"
    spec: EmbeddingSpec

    def run(self, batch: TokenBatch) -> np.ndarray:
        """Return (B, spec.dim) float32 rows of unit L2 length."""
        ...


class Prefixes(Protocol):
    """Prefixes that are computed already, by their prompts."""

    @property
    def ids(self) -> Mapping[Prompt, list[int]]:
        """The token ids of each."""
        ...

    def load(self, prompt: Prompt) -> Prefix:
        """Return one of them."""
        ...


class Encoder:
    """Tokeniser, prompts and batching over a backend.

    Args:
        backend: What computes.
        tokeniser: The model's tokenizer under its contract.
        prompts: The model's named prompts.
        prefixes: What is computed of prompts already; without, each is computed with every text.
        limits: What is computed at once; None for what suits a CPU.
    """

    def __init__(
        self,
        backend: Backend,
        tokeniser: Tokeniser,
        prompts: Prompts | None = None,
        prefixes: Prefixes | None = None,
        limits: BatchLimits | None = None,
    ) -> None:
        self.backend = backend
        self.tokeniser = tokeniser
        self.prompts = prompts or Prompts()
        self.prefixes = prefixes
        self.limits = limits or BatchLimits()

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.backend.spec.dim

    def encode(
        self,
        texts: str | Sequence[str],
        prompt: str | Prompt | Sequence[str | Prompt | None] | None = None,
        *,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Embed texts; equal texts are computed once.

        Args:
            texts: One text, or N of them.
            prompt: Name of a prompt of the model, a prompt itself, or N of these, one a text; None
                for its default, if it has one; "" for none.
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
        first: dict[tuple[str, Prompt], int] = {}
        pairs = list(zip(texts, self._prompt_of_each(len(texts), prompt), strict=True))
        for index, pair in enumerate(pairs):
            first.setdefault(pair, index)
        distinct = list(first.items())

        def name(place: int) -> str:
            (text, _), index = distinct[place]
            return f"{index} ({text[:40]!r})"

        vectors = self._encode(self._rows(list(first)), name, progress)
        if len(first) == len(texts):
            return vectors
        place = {pair: index for index, pair in enumerate(first)}
        return vectors[[place[pair] for pair in pairs]]

    def rows(self, texts: Sequence[str], prompt: Prompt) -> list[Row]:
        """Return the token ids of texts with a prompt, behind its prefix where there is one."""
        return self.behind_prefixes(self.tokeniser.ids(texts, prompt), [prompt])

    def batch(self, rows: Sequence[Row]) -> TokenBatch:
        """Pad rows behind one prefix, or behind none."""
        (prefix,) = {id(row.prefix): row.prefix for row in rows}.values()
        return self.tokeniser.batch([row.ids for row in rows], prefix)

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
        known = list(self.prefixes.ids) if self.prefixes is not None else []
        return self._encode(self.behind_prefixes(rows, known), str, None)

    def _prompt_of_each(
        self, texts: int, prompt: str | Prompt | Sequence[str | Prompt | None] | None
    ) -> list[Prompt]:
        if prompt is None or isinstance(prompt, str | Prompt):
            return [self._find(prompt)] * texts
        if len(prompt) != texts:
            raise InputError(
                f"expected one prompt, or one for each of {texts} texts, found {len(prompt)}"
            )
        return [self._find(one) for one in prompt]

    def _find(self, prompt: str | Prompt | None) -> Prompt:
        return prompt if isinstance(prompt, Prompt) else self.prompts.find(prompt)

    def _rows(self, pairs: Sequence[tuple[str, Prompt]]) -> list[Row]:
        """Return the rows of texts with prompts, in their order."""
        places: dict[Prompt, list[int]] = {}
        for place, (_, prompt) in enumerate(pairs):
            places.setdefault(prompt, []).append(place)
        rows = [Row(())] * len(pairs)
        for prompt, members in places.items():
            for place, row in zip(
                members, self.rows([pairs[place][0] for place in members], prompt), strict=True
            ):
                rows[place] = row
        return rows

    def behind_prefixes(
        self, rows: Sequence[Sequence[int]], prompts: Sequence[Prompt]
    ) -> list[Row]:
        """Put each row behind the prefix of one of these prompts that it shares most with."""
        if self.prefixes is None:
            return [Row(ids) for ids in rows]
        ids_of = self.prefixes.ids
        known = {prompt: ids_of[prompt] for prompt in prompts if prompt in ids_of}
        cuts: dict[tuple[Prompt, int], Prefix] = {}
        placed = []
        for ids in rows:
            prompt, shared = best_prefix(ids, known)
            if prompt is None:
                placed.append(Row(ids))
                continue
            if (prompt, shared) not in cuts:
                loaded = self.prefixes.load(prompt)
                cuts[prompt, shared] = loaded if shared == len(loaded) else loaded.first(shared)
            placed.append(Row(ids[shared:], cuts[prompt, shared]))
        return placed

    def _encode(
        self, rows: Sequence[Row], name: Callable[[int], str], progress: Progress | None
    ) -> np.ndarray:
        """Embed rows; `name` is what the caller calls the one at an index."""
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        done = 0
        for members in batches(rows, self.limits):
            found = self.backend.run(self.batch([rows[index] for index in members]))
            finite = np.isfinite(found).all(axis=1)
            if not finite.all():
                raise DamagedError(
                    f"expected finite vectors, found NaN or infinity for text "
                    f"{name(members[int(np.argmin(finite))])} in {self.backend.compute_label}; "
                    "export in a wider precision"
                )
            vectors[members] = found
            done += len(members)
            if progress is not None:
                progress(done, len(rows))
        return vectors


def best_prefix(
    ids: Sequence[int], fronts: Mapping[Prompt, list[int]]
) -> tuple[Prompt | None, int]:
    """Find what a row is to stand behind.

    Args:
        ids: The row's token ids.
        fronts: The token ids of each prefix there is.

    Returns:
        The prompt that it shares most with, and how many tokens; None and 0 where there is none, or
        not enough of it.
    """
    shared, prompt = 0, None
    for candidate, front in fronts.items():
        found = _shared(ids, front)
        least = max(len(front) - _BORDER_TOKENS, len(front) // 2 + 1)
        if found >= least and found > shared:
            shared, prompt = found, candidate
    if prompt is None or shared * _WORTH < len(ids) - shared:
        return None, 0
    return prompt, shared


def _shared(ids: Sequence[int], front: list[int]) -> int:
    """Count the tokens that a row starts with as a prefix does; one of the row's is left over."""
    if list(ids[: len(front)]) == front and len(ids) > len(front):
        return len(front)
    pairs = zip(ids[:-1], front, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
