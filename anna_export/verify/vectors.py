"""Vector parity: two encoders over the same texts, and one against itself in other batches."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from anna_export.encoder import Encoder
from anna_export.machine.hardware import hardware
from anna_export.machine.versions import installed
from anna_export.progress import Progress
from anna_export.quantise.scheme import Limits
from anna_export.text.batching import TokenSequence, batches, by_prefix
from anna_export.text.prompts import NO_PROMPT, Prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.golden import GoldenVector, golden_of
from anna_export.verify.texts import ODD_TEXTS, long_text, ordinary_texts

# Longest text that every run compares: its cost grows with the square.
LONG_TOKENS = 1024
_MIXED_BATCH = 4
# Rows are normalised in fp32, whatever the model computes in.
_LENGTH_TOLERANCE = 1e-4
# What is not finite counts as the worst there is: the opposite vector.
_OPPOSITE_COSINE, _OPPOSITE_DIFFERENCE = -1.0, 2.0


@dataclass(frozen=True, slots=True)
class Parity:
    """How close a candidate's vectors are to the reference's.

    Cosines and differences are over (text, prompt) pairs; `alone_*` compare the candidate with
    itself: each text alone against the same text in padded batches and in another order; they
    and their bounds are None where that was not done. `floor` bounds the worst cosine, `max_loss`
    the mean of 1 - cosine; None where that is not judged.
    """

    verdict: str  # "pass" or "fail"
    reasons: list[str]
    texts: int
    prompts: list[str]
    longest_tokens: int
    worst_cosine: float
    worst_text: str
    mean_cosine: float
    max_abs: float
    nonfinite: int
    alone_worst_cosine: float | None
    alone_max_abs: float | None
    floor: float | None
    max_loss: float | None
    alone_floor: float | None
    alone_limit: float | None
    method: str
    reference: str
    candidate: str
    hardware: str
    versions: dict[str, str]
    measured: str  # date and time
    reference_sha256: dict[str, str] = field(default_factory=dict)  # of the files it was read from
    golden: list[GoldenVector] = field(default_factory=list)  # what whoever serves is held to

    @property
    def loss(self) -> float:
        """Mean 1 - cosine."""
        return 1 - self.mean_cosine

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


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
    texts = [*ODD_TEXTS, *ordinary_texts(count), long_text(words - 1)]
    return [*texts, long_text(limit)] if limit <= LONG_TOKENS else texts


def compare(
    reference: Encoder,
    candidate: Encoder,
    texts: Sequence[str],
    *,
    limits: Limits,
    method: str,
    together: bool = False,
    progress: Progress | None = None,
) -> Parity:
    """Embed every text with every prompt by both encoders, and by the candidate also alone.

    Args:
        reference: The truth; its own tokeniser must give the same ids.
        candidate: What is held against it.
        texts: N texts.
        limits: How close they must be.
        method: What is done here, in words.
        together: Give the reference all texts in one batch, as a streamed one reads its weights
            once a batch.
        progress: Told how many embeddings are done.

    Returns:
        The figures and a verdict.
    """
    labels, rows = _labelled_rows(candidate, texts)
    _, expected_rows = _labelled_rows(reference, texts, candidate.prompts)
    same_ids = _same([row.joined() for row in rows], [row.joined() for row in expected_rows])
    ticks = _Ticks(progress, 3 * len(rows))
    alike = [list(range(len(rows)))]
    if not together:
        alike = batches(expected_rows, reference.limits)
    expected = _vectors(reference, expected_rows, alike, ticks)
    found = _vectors(candidate, rows, _unlike(rows), ticks)
    alone = _vectors(candidate, rows, [[index] for index in range(len(rows))], ticks)
    parity = _judge(
        _Compared(labels, expected, found, same_ids, alone),
        limits=limits,
        texts=len(texts),
        prompts=sorted(candidate.prompts.by_name),
        longest_tokens=max(len(row.joined()) for row in rows),
        method=method,
        reference=f"{reference.backend.name}: {reference.backend.arithmetic}",
        candidate=f"{candidate.backend.name}: {candidate.backend.arithmetic}",
    )
    if parity.nonfinite:
        return parity
    # the first rows are those without a prompt
    bare = [row.joined() for row in rows[: len(texts)]]
    first = expected[: len(texts)]
    golden = golden_of(bare, first, _cosines(found[: len(texts)], first))
    return replace(parity, golden=golden)


def compare_weights(
    reference: Encoder, candidate: Encoder, texts: Sequence[str], *, limits: Limits
) -> Parity:
    """Embed texts in one batch by two streamed models: the stored weights, not the graph."""
    expected_rows, rows = reference.tokeniser.ids(texts), candidate.tokeniser.ids(texts)
    return _judge(
        _Compared(
            [repr(text[:60]) for text in texts],
            reference.backend.run(reference.tokeniser.batch(expected_rows)),
            candidate.backend.run(candidate.tokeniser.batch(rows)),
            same_ids=_same(rows, expected_rows),
        ),
        limits=replace(limits, alone_cosine=None, alone_max_abs=None),
        texts=len(texts),
        prompts=[],
        longest_tokens=max(len(row) for row in rows),
        method="weights only, layer by layer, one batch: model too large for this memory",
        reference=f"{reference.backend.name}: {reference.backend.arithmetic}",
        candidate=f"{candidate.backend.name}: {candidate.backend.arithmetic}",
    )


@dataclass(frozen=True, slots=True)
class _Compared:
    """Vectors of the same N texts, (N, D) each."""

    labels: list[str]
    expected: np.ndarray
    found: np.ndarray
    same_ids: np.ndarray  # (N,) bool
    alone: np.ndarray | None = None


def _judge(
    vectors: _Compared,
    *,
    limits: Limits,
    **described: Any,
) -> Parity:
    cosines, labels = _cosines(vectors.found, vectors.expected), vectors.labels
    finite = np.isfinite(vectors.found).all(axis=1)
    if vectors.alone is not None:
        finite &= np.isfinite(vectors.alone).all(axis=1)
    nonfinite = int((~finite).sum())
    worst = int(np.argmin(cosines))
    reasons = []
    if not vectors.same_ids.all():
        where = labels[int(np.argmin(vectors.same_ids))]
        reasons.append(f"token ids differ from the reference's ({where})")
    if nonfinite:
        where = labels[int(np.argmin(finite))]
        reasons.append(f"{nonfinite} vectors are not finite (the first: {where})")
    off = np.where(finite, np.abs(np.linalg.norm(vectors.found, axis=1) - 1), 0.0)
    if off.max() > _LENGTH_TOLERANCE:
        where = labels[int(np.argmax(off))]
        reasons.append(f"a vector's length is {off.max():.1e} from 1 ({where})")
    floor, loss = limits.worst_cosine, 1 - float(cosines.mean())
    if floor is not None and not cosines[worst] >= floor:
        reasons.append(f"worst cosine {cosines[worst]:.7f} is below {floor} ({labels[worst]})")
    if limits.max_loss is not None and not loss <= limits.max_loss:
        reasons.append(
            f"mean loss (1 - cosine) {loss:.2e} is above {limits.max_loss} (the worst cosine, "
            f"{cosines[worst]:.4f}: {labels[worst]})"
        )
    alone_worst, alone_max_abs = None, None
    alone_floor, alone_limit = limits.alone_cosine, limits.alone_max_abs
    if vectors.alone is not None:
        alike = _cosines(vectors.found, vectors.alone)
        differences = _differences(vectors.found, vectors.alone)
        alone_worst, alone_max_abs = float(alike.min()), float(differences.max())
        if alone_floor is not None and not alone_worst >= alone_floor:
            where = labels[int(np.argmin(alike))]
            reasons.append(
                f"a text alone and in a batch: {alone_worst:.7f} below {alone_floor} ({where})"
            )
        if alone_limit is not None and not alone_max_abs <= alone_limit:
            where = labels[int(np.argmax(differences))]
            reasons.append(
                f"a text alone and in a batch: {alone_max_abs:.1e} above {alone_limit} ({where})"
            )
    return Parity(
        verdict="fail" if reasons else "pass",
        reasons=reasons,
        worst_cosine=float(cosines[worst]),
        worst_text=vectors.labels[worst],
        mean_cosine=float(cosines.mean()),
        max_abs=float(_differences(vectors.found, vectors.expected).max()),
        nonfinite=nonfinite,
        alone_worst_cosine=alone_worst,
        alone_max_abs=alone_max_abs,
        floor=floor,
        max_loss=limits.max_loss,
        alone_floor=alone_floor,
        alone_limit=alone_limit,
        hardware=hardware(),
        versions=installed(),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        **described,
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


def _vectors(
    encoder: Encoder, rows: Sequence[TokenSequence], parts: Sequence[list[int]], ticks: _Ticks
) -> np.ndarray:
    """Embed in these batches of indices; NaN stays NaN."""
    vectors = np.empty((len(rows), encoder.dim), dtype=np.float32)
    for members in parts:
        batch = encoder.batch([rows[index] for index in members])
        vectors[members] = encoder.backend.run(batch)
        ticks.add(len(members))
    return vectors


def _unlike(rows: Sequence[TokenSequence]) -> list[list[int]]:
    """Split into batches of one prefix and unlike lengths, so that padding is put to the test."""
    parts = []
    for members in by_prefix(rows):
        members.sort(key=lambda index: len(rows[index].ids))
        count = max(1, len(members) // _MIXED_BATCH)
        parts += [members[first::count] for first in range(count)]
    return parts


def _cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(N,) cosines in float64."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    with np.errstate(invalid="ignore"):
        cosines = (left * right).sum(axis=1) / norms
    return np.where(np.isfinite(cosines), cosines, _OPPOSITE_COSINE)


def _differences(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(N,) largest differences in float64."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(left.astype(np.float64) - right.astype(np.float64))
    return np.where(np.isfinite(difference), difference, _OPPOSITE_DIFFERENCE).max(axis=1)


def _same(left: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> np.ndarray:
    """(N,) bool: which rows of token ids are equal."""
    return np.array([list(one) == list(other) for one, other in zip(left, right, strict=True)])
