"""Vector parity: two encoders over the same texts, and one against itself in other batches."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from anna_export.cosine import cosines
from anna_export.encoder import Encoder
from anna_export.progress import Progress
from anna_export.quantise.scheme import Thresholds
from anna_export.text.batching import TokenSequence, batches, by_prefix
from anna_export.text.prompts import NO_PROMPT, Prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.checks import VectorPairs, judge
from anna_export.verify.golden import golden_of
from anna_export.verify.parity_report import VectorParity
from anna_export.verify.texts import ODD_TEXTS, long_text, ordinary_texts

# Longest text that every run compares: its cost grows with the square.
LONG_TOKENS = 1024
_MIXED_BATCH = 4


def parity_texts(tokeniser: Tokeniser, count: int = 32) -> list[str]:
    """Return the texts a parity run compares.

    The longest has about 1,024 tokens. Where the model's limit is lower, one text just fits and
    another is cut.
    """
    limit = tokeniser.framing.max_tokens
    tokens = min(limit, LONG_TOKENS)
    words = bisect_left(
        range(tokens), tokens, key=lambda words: len(tokeniser.ids([long_text(words)])[0])
    )
    texts = [*tokeniser.with_tokens(ODD_TEXTS), *ordinary_texts(count), long_text(words - 1)]
    return [*texts, long_text(limit)] if limit <= LONG_TOKENS else texts


def compare(
    reference: Encoder,
    candidate: Encoder,
    texts: Sequence[str],
    *,
    thresholds: Thresholds,
    method: str,
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
        together: Give the reference all texts in one batch, as a streamed one reads its weights
            once a batch.
        progress: Receives how many embeddings are done.

    Returns:
        The figures and a verdict.
    """
    labels, rows = _labelled_rows(candidate, texts)
    _, expected_rows = _labelled_rows(reference, texts, candidate.prompts)
    ticks = _Ticks(progress, 3 * len(rows))
    reference_batches = [list(range(len(rows)))]
    if not together:
        reference_batches = batches(expected_rows, reference.limits)
    pairs = VectorPairs(
        labels=labels,
        expected_ids=[row.joined() for row in expected_rows],
        ids=[row.joined() for row in rows],
        expected=_embed(reference, expected_rows, reference_batches, ticks),
        vectors=_embed(candidate, rows, _mixed_batches(rows), ticks),
        batch1=_embed(candidate, rows, [[index] for index in range(len(rows))], ticks),
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
    # the first rows are those without a prompt
    bare = slice(len(texts))
    likeness = cosines(pairs.vectors[bare], pairs.expected[bare])
    return replace(parity, golden=golden_of(pairs.ids[bare], pairs.expected[bare], likeness))


def compare_weights(
    reference: Encoder, candidate: Encoder, texts: Sequence[str], *, thresholds: Thresholds
) -> VectorParity:
    """Embed texts in one batch by two streamed models: the stored weights, not the graph."""
    expected_ids, ids = reference.tokeniser.ids(texts), candidate.tokeniser.ids(texts)
    pairs = VectorPairs(
        labels=[repr(text[:60]) for text in texts],
        expected_ids=expected_ids,
        ids=ids,
        expected=reference.backend.run(reference.tokeniser.batch(expected_ids)),
        vectors=candidate.backend.run(candidate.tokeniser.batch(ids)),
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


def _labelled_rows(
    encoder: Encoder, texts: Sequence[str], prompts: Prompts | None = None
) -> tuple[list[str], list[TokenSequence]]:
    """Return a label and the row of every text, without and with every prompt, once each."""
    names = {NO_PROMPT: "no prompt"}
    for name, prompt in sorted((prompts or encoder.prompts).by_name.items()):
        names.setdefault(prompt, name)
    labels: list[str] = []
    rows: list[TokenSequence] = []
    for prompt, name in names.items():
        labels += [f"{name}: {text[:60]!r}" for text in texts]
        rows += encoder.tokenise(texts, prompt)
    return labels, rows


class _Ticks:
    """Counts texts over several encoders."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


def _embed(
    encoder: Encoder, rows: Sequence[TokenSequence], parts: Sequence[list[int]], ticks: _Ticks
) -> np.ndarray:
    """Embed in these batches of indices; NaN stays NaN."""
    vectors = np.empty((len(rows), encoder.dim), dtype=np.float32)
    for members in parts:
        batch = encoder.batch([rows[index] for index in members])
        vectors[members] = encoder.backend.run(batch)
        ticks.add(len(members))
    return vectors


def _mixed_batches(rows: Sequence[TokenSequence]) -> list[list[int]]:
    """Split into batches of one prefix and unlike lengths, so that padding is put to the test."""
    parts = []
    for members in by_prefix(rows):
        members.sort(key=lambda index: len(rows[index].ids))
        count = max(1, len(members) // _MIXED_BATCH)
        parts += [members[first::count] for first in range(count)]
    return parts
