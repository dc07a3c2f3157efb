"""Texts in, vectors out: one encoder over any backend."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Protocol

import numpy as np

from anna_export.errors import DamagedError, InputError
from anna_export.progress import Progress
from anna_export.spec import EmbeddingSpec
from anna_export.text.batch import TokenBatch
from anna_export.text.batching import BatchLimits, TokenSequence, batches
from anna_export.text.find_prefix import longest_cached_prefix, most_cached_tokens
from anna_export.text.framing import TokenFraming
from anna_export.text.prefix import Prefix
from anna_export.text.prompts import NO_PROMPT, Prompt, Prompts
from anna_export.text.tokeniser import require_text


class Backend(Protocol):
    """One runtime with one model loaded."""

    name: str  # such as "ort"
    compute_label: str  # what it computes in, for verdicts: "fp32 on CPU"
    spec: EmbeddingSpec

    def run(self, batch: TokenBatch) -> np.ndarray:
        """Return (B, spec.embedding_dim) float32 rows, of unit L2 length if its head says so."""
        ...


class TextTokeniser(Protocol):
    """A model's tokenizer and the framing of its texts."""

    framing: TokenFraming

    def ids(self, texts: Sequence[str], prompt: Prompt = NO_PROMPT) -> list[list[int]]:
        """Return each text's token ids, framed and truncated to max_tokens."""
        ...

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens at a text's start are its prompt's, as the library counts them."""
        ...

    def id_to_token(self, token: int) -> str:
        """Return how a token is written in the vocabulary."""
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
        tokeniser: The model's tokenizer and framing.
        prompts: The model's named prompts.
        prefixes: Cached prefixes of prompts; without, a prompt is computed with every text.
        limits: The most that is computed at once; None for what suits a CPU.
        reopen: Opens this encoder again, in another process too: what it is pickled and copied as.
    """

    def __init__(
        self,
        backend: Backend,
        tokeniser: TextTokeniser,
        prompts: Prompts | None = None,
        prefixes: Prefixes | None = None,
        limits: BatchLimits | None = None,
        reopen: "Callable[[], Encoder] | None" = None,
    ) -> None:
        self.backend = backend
        self.tokeniser = tokeniser
        self.prompts = prompts or Prompts()
        self.prefixes = prefixes
        self.limits = limits or BatchLimits()
        self._reopen = reopen

    def __reduce__(self) -> "tuple[Callable[[], Encoder], tuple[()]]":
        """Return what opens it: neither a runtime's session nor a tokenizer survives pickling.

        Raises:
            InputError: If it is of parts that no file is known of.
        """
        if self._reopen is None:
            raise InputError(
                "expected an encoder of open_encoder to pickle or copy, found one of parts; open "
                "it in each process"
            )
        return self._reopen, ()

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.backend.spec.embedding_dim

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
            (D,) for one text, else (N, D), float32, in the order given; rows of unit L2 length,
            but for a model without Normalize.

        Raises:
            InputError: For an unknown prompt, something that is not text, or no sequence of them.
            DamagedError: If a vector is not finite.
        """
        if isinstance(texts, str):
            return self.encode([texts], prompt, progress=progress)[0]
        _require_sequence(texts)
        require_text(texts)
        pairs = list(zip(texts, self._prompt_of_each(len(texts), prompt), strict=True))
        first_index: dict[tuple[str, Prompt], int] = {}
        for index, pair in enumerate(pairs):
            first_index.setdefault(pair, index)
        distinct = list(first_index)

        def name(index: int) -> str:
            pair = distinct[index]
            return f"{first_index[pair]} ({pair[0][:40]!r})"

        vectors = self._forward(self._tokenise_pairs(distinct), name, progress)
        if len(distinct) == len(texts):
            return vectors
        row_of = {pair: row for row, pair in enumerate(distinct)}
        return vectors[[row_of[pair] for pair in pairs]]

    def tokenise(self, texts: Sequence[str], prompt: Prompt) -> list[TokenSequence]:
        """Return the token ids of texts with a prompt, its cached prefix split off, if any."""
        rows, head = self.tokeniser.ids(texts, prompt), self.backend.spec.head
        counted = self.tokeniser.prompt_tokens(prompt) if head.leaves_out_prompt else 0
        return self.split_cached_prefixes(rows, [prompt], counted)

    def batch(self, sequences: Sequence[TokenSequence]) -> TokenBatch:
        """Pad sequences of one cached prefix, or of none."""
        (prefix,) = {id(sequence.prefix): sequence.prefix for sequence in sequences}.values()
        counts = None
        if self.backend.spec.head.leaves_out_prompt:
            counts = [sequence.prompt_tokens for sequence in sequences]
        rows = [sequence.ids for sequence in sequences]
        return TokenBatch.of_rows(rows, self.tokeniser.framing.pad_id, prefix, counts)

    def encode_ids(self, rows: Sequence[Sequence[int]], prompt_tokens: int = 0) -> np.ndarray:
        """Embed token id rows as they are; (N, D) float32 in the order given.

        Args:
            rows: Token ids, framed.
            prompt_tokens: How many at each row's start are a prompt's, for a model that leaves
                them out of the pooling; others ignore it.

        Raises:
            InputError: If a row is longer than the model's longest sequence.
        """
        longest = max(map(len, rows), default=0)
        if longest > self.tokeniser.framing.max_tokens:
            raise InputError(
                f"expected at most {self.tokeniser.framing.max_tokens} tokens a row, found "
                f"{longest}; truncate them, or export with larger `max_tokens`"
            )
        prompts = list(self.prefixes.ids) if self.prefixes is not None else []
        return self._forward(self.split_cached_prefixes(rows, prompts, prompt_tokens), str, None)

    def _prompt_of_each(
        self, texts: int, prompt: str | Prompt | Sequence[str | Prompt | None] | None
    ) -> list[Prompt]:
        if prompt is None or isinstance(prompt, str | Prompt):
            return [self._find(prompt)] * texts
        if len(prompt) != texts:
            raise InputError(
                f"expected one prompt, or one for each of {texts} texts, found {len(prompt)}"
            )
        return [self._find(name) for name in prompt]

    def _find(self, prompt: str | Prompt | None) -> Prompt:
        return prompt if isinstance(prompt, Prompt) else self.prompts.find(prompt)

    def _tokenise_pairs(self, pairs: Sequence[tuple[str, Prompt]]) -> list[TokenSequence]:
        """Return the sequences of texts with prompts, in their order."""
        by_prompt: dict[Prompt, list[int]] = {}
        for index, (_, prompt) in enumerate(pairs):
            by_prompt.setdefault(prompt, []).append(index)
        sequences = [TokenSequence(())] * len(pairs)
        for prompt, members in by_prompt.items():
            tokenised = self.tokenise([pairs[index][0] for index in members], prompt)
            for index, sequence in zip(members, tokenised, strict=True):
                sequences[index] = sequence
        return sequences

    def split_cached_prefixes(
        self, rows: Sequence[Sequence[int]], prompts: Sequence[Prompt], prompt_tokens: int = 0
    ) -> list[TokenSequence]:
        """Split off each row the longest cached prefix of one of these prompts.

        Args:
            rows: Token ids, framed.
            prompts: Those whose prefixes are looked for.
            prompt_tokens: How many at each row's start pooling leaves out, where it does.
        """
        if self.prefixes is None:
            return [TokenSequence(ids, None, prompt_tokens) for ids in rows]
        head = self.backend.spec.head
        cached_ids = self.prefixes.ids
        candidates = {prompt: cached_ids[prompt] for prompt in prompts if prompt in cached_ids}
        prefixes: dict[tuple[Prompt, int], Prefix] = {}
        sequences = []
        for ids in rows:
            most = most_cached_tokens(head, len(ids), prompt_tokens)
            prompt, length = longest_cached_prefix(ids, candidates, most)
            if prompt is None:
                sequences.append(TokenSequence(ids, None, prompt_tokens))
                continue
            if (prompt, length) not in prefixes:
                loaded = self.prefixes.load(prompt)
                prefixes[prompt, length] = loaded if length == len(loaded) else loaded.first(length)
            sequences.append(TokenSequence(ids[length:], prefixes[prompt, length], prompt_tokens))
        return sequences

    def _forward(
        self,
        sequences: Sequence[TokenSequence],
        name: Callable[[int], str],
        progress: Progress | None,
    ) -> np.ndarray:
        """Embed sequences; `name` is what the caller calls the text at an index."""
        vectors = np.empty((len(sequences), self.dim), dtype=np.float32)
        done = 0
        for members in batches(sequences, self.limits):
            rows = self.backend.run(self.batch([sequences[index] for index in members]))
            finite = np.isfinite(rows).all(axis=1)
            if not finite.all():
                raise DamagedError(
                    f"expected finite vectors, found NaN or infinity for text "
                    f"{name(members[int(np.argmin(finite))])} in {self.backend.compute_label}; "
                    "export in a wider precision"
                )
            vectors[members] = rows
            done += len(members)
            if progress is not None:
                progress(done, len(sequences))
        return vectors


def _require_sequence(texts: object) -> None:
    """Refuse texts that have no number, no order, or more than one dimension.

    Raises:
        InputError: Naming what they are.
    """
    in_a_row = hasattr(texts, "__len__") and getattr(texts, "ndim", 1) == 1
    if not in_a_row or isinstance(texts, Set | Mapping):
        raise InputError(
            f"expected a text or a list of texts, found a {type(texts).__name__}; make a list of "
            "its texts"
        )
