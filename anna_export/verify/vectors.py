"""Vector parity: two encoders over the same texts, and one against itself in other batches."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from anna_export.cosine import cosines
from anna_export.encoder import Encoder, TextTokeniser
from anna_export.progress import Progress
from anna_export.quantise.scheme import Thresholds
from anna_export.text.batching import TokenSequence, batches, by_prefix
from anna_export.text.prompts import NO_PROMPT, Prompt, Prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.checks import VectorPairs, judge
from anna_export.verify.golden import golden_of
from anna_export.verify.parity_report import VectorParity
from anna_export.verify.texts import ODD_TEXTS, long_text, ordinary_texts

# Longest text that is compared with every prompt: its cost grows with the square.
LONG_TOKENS = 1024
# Longest text that is compared at all: what lies beyond is not proved.
_LONGEST_TOKENS = 8192
# How far behind a sliding window a text ends that only a model with that window embeds alike.
_BEYOND_WINDOW = 64
_MIXED_BATCH = 4


def parity_texts(tokeniser: Tokeniser, count: int = 32) -> list[str]:
    """Return the texts a parity run compares with every prompt.

    The longest has about 1,024 tokens. Where the model's limit is lower, one text just fits and
    another is cut.
    """
    limit = tokeniser.framing.max_tokens
    fitting = _text_of(min(limit, LONG_TOKENS), tokeniser)
    texts = [*tokeniser.with_tokens(ODD_TEXTS), *ordinary_texts(count), fitting]
    return [*texts, long_text(limit)] if limit <= LONG_TOKENS else texts


def longest_texts(tokeniser: TextTokeniser, window: int | None) -> list[str]:
    """Return texts a little beyond the sliding window and near the longest sequence, if any.

    The last is the longest. They are compared without a prompt; there are none where
    `parity_texts` holds texts as long as the model takes.
    """
    limit = tokeniser.framing.max_tokens
    if limit <= LONG_TOKENS:
        return []
    lengths = {min(limit, _LONGEST_TOKENS)}
    if window is not None and LONG_TOKENS < window + _BEYOND_WINDOW < limit:
        lengths.add(min(window + _BEYOND_WINDOW, _LONGEST_TOKENS))
    return [_text_of(length, tokeniser) for length in sorted(lengths)]


def _text_of(tokens: int, tokeniser: TextTokeniser) -> str:
    """Return the longest text that has, framed, fewer tokens than this or as many."""
    words = bisect_left(
        range(tokens), tokens, key=lambda words: len(tokeniser.ids([long_text(words)])[0])
    )
    return long_text(words - 1)


def any_pair(text: str, prompt: Prompt) -> bool:
    """Say that a text can be compared with a prompt, whichever they are."""
    return True


@dataclass(frozen=True, slots=True)
class _Case:
    """A text and a prompt to compare."""

    label: str
    text: str
    prompt: Prompt = NO_PROMPT
    longest: bool = False  # of `longest_texts`: in a batch of its own, and once


def compare(
    reference: Encoder,
    candidate: Encoder,
    texts: Sequence[str],
    *,
    thresholds: Thresholds,
    method: str,
    longest: Sequence[str] = (),
    comparable: Callable[[str, Prompt], bool] = any_pair,
    together: bool = False,
    progress: Progress | None = None,
) -> VectorParity:
    """Embed every text with every prompt by both encoders; by the candidate also at batch size 1.

    Args:
        reference: The truth; its own tokeniser must give the same ids.
        candidate: The encoder that is judged.
        texts: N texts.
        thresholds: How close they must be.
        method: What is compared, in words.
        longest: Texts that are compared without a prompt, each in a batch of its own.
        comparable: Whether the reference can be asked for a text with a prompt.
        together: Give the reference all texts in one batch, as a streamed one reads its weights
            once a batch.
        progress: Receives how many embeddings are done.

    Returns:
        The figures and a verdict.
    """
    cases = _cases(texts, candidate.prompts, comparable, longest)
    rows, expected_rows = _tokenised(candidate, cases), _tokenised(reference, cases)
    short = [index for index, case in enumerate(cases) if not case.longest]
    alone = [[index] for index, case in enumerate(cases) if case.longest]
    ticks = _Ticks(progress, 2 * len(cases) + len(short))
    reference_batches = [short]
    if not together:
        reference_batches = batches([expected_rows[index] for index in short], reference.limits)
    vectors = _embed(candidate, rows, [*_mixed_batches(rows, short), *alone], ticks)
    pairs = VectorPairs(
        labels=[case.label for case in cases],
        expected_ids=[row.joined() for row in expected_rows],
        ids=[row.joined() for row in rows],
        expected=_embed(reference, expected_rows, [*reference_batches, *alone], ticks),
        vectors=vectors,
        batch1=_embed(candidate, rows, [[index] for index in short], ticks, into=vectors.copy()),
        token=candidate.tokeniser.id_to_token,
    )
    parity = judge(
        pairs,
        thresholds,
        reference,
        candidate,
        len(texts),
        sorted(candidate.prompts.by_name),
        method,
    )
    if parity.nonfinite:
        return parity
    # the first cases are those without a prompt
    bare = slice(len(texts))
    likeness = cosines(pairs.vectors[bare], pairs.expected[bare])
    return replace(parity, golden=golden_of(pairs.ids[bare], pairs.expected[bare], likeness))


def compare_weights(
    reference: Encoder,
    candidate: Encoder,
    texts: Sequence[str],
    *,
    thresholds: Thresholds,
    longest: Sequence[str] = (),
) -> VectorParity:
    """Embed texts by two streamed models: the stored weights, not the graph.

    All but the longest are one batch, for a pass over the weights costs more than the padding.
    """
    cases = _cases(texts, Prompts(), any_pair, longest)
    rows, expected_rows = _tokenised(candidate, cases), _tokenised(reference, cases)
    parts = [list(range(len(texts))), *([len(texts) + index] for index in range(len(longest)))]
    ticks = _Ticks(None, 0)
    pairs = VectorPairs(
        labels=[case.label for case in cases],
        expected_ids=[row.joined() for row in expected_rows],
        ids=[row.joined() for row in rows],
        expected=_embed(reference, expected_rows, parts, ticks),
        vectors=_embed(candidate, rows, parts, ticks),
        token=candidate.tokeniser.id_to_token,
    )
    return judge(
        pairs,
        replace(thresholds, batch1_min_cosine=None, batch1_max_abs=None),
        reference,
        candidate,
        len(texts),
        prompts=[],
        method="weights only, layer by layer, one batch: model too large for this memory",
    )


def _cases(
    texts: Sequence[str],
    prompts: Prompts,
    comparable: Callable[[str, Prompt], bool],
    longest: Sequence[str],
) -> list[_Case]:
    """Return every text without and with every prompt, each prompt once, and the longest texts."""
    names = {NO_PROMPT: "no prompt"}
    for name, prompt in sorted(prompts.by_name.items()):
        names.setdefault(prompt, name)
    cases = [
        _Case(f"{name}: {text[:60]!r}", text, prompt)
        for prompt, name in names.items()
        for text in texts
        if comparable(text, prompt)
    ]
    return [
        *cases,
        *(_Case(f"no prompt: {text[:60]!r}, whole", text, longest=True) for text in longest),
    ]


def _tokenised(encoder: Encoder, cases: Sequence[_Case]) -> list[TokenSequence]:
    """Return the token ids of each case; those of one prompt are asked for together."""
    rows = [TokenSequence(())] * len(cases)
    for prompt in {case.prompt: None for case in cases}:
        members = [index for index, case in enumerate(cases) if case.prompt == prompt]
        tokenised = encoder.tokenise([cases[index].text for index in members], prompt)
        for index, row in zip(members, tokenised, strict=True):
            rows[index] = row
    return rows


class _Ticks:
    """Counts texts over several encoders."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


def _embed(
    encoder: Encoder,
    rows: Sequence[TokenSequence],
    parts: Sequence[list[int]],
    ticks: _Ticks,
    into: np.ndarray | None = None,
) -> np.ndarray:
    """Embed in these batches of indices; NaN stays NaN, and the rest as it is in `into`."""
    vectors = np.empty((len(rows), encoder.dim), dtype=np.float32) if into is None else into
    for members in parts:
        batch = encoder.batch([rows[index] for index in members])
        vectors[members] = encoder.backend.run(batch)
        ticks.add(len(members))
    return vectors


def _mixed_batches(rows: Sequence[TokenSequence], indices: Sequence[int]) -> list[list[int]]:
    """Split into batches of one prefix and unlike lengths, so that padding is put to the test."""
    parts = []
    for of_prefix in by_prefix([rows[index] for index in indices]):
        members = [indices[index] for index in of_prefix]
        members.sort(key=lambda index: len(rows[index].ids))
        count = max(1, len(members) // _MIXED_BATCH)
        parts += [members[first::count] for first in range(count)]
    return parts
