"""The process that computes: token ids come in through a pipe, vectors go back.

It is another process than the one that answers requests, so that a crash of native code costs the
batches it had and nothing else.
"""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from multiprocessing.connection import Connection
from typing import Final

import numpy as np

from anna_export.cosine import cosines, length_errors
from anna_export.encoder import Encoder
from anna_export.errors import AnnaError, DamagedError
from anna_export.serve.log import log
from anna_export.text.batch import TokenBatch
from anna_export.text.batching import BatchLimits
from anna_export.text.prefix import Prefix
from anna_export.text.prompts import Prompt
from anna_export.verify.golden import GoldenVector, require_golden

# A text in a batch of one against itself in a larger batch: a lower cosine is a wrong computation.
_MIN_COSINE: Final = 0.99
_LENGTH_TOLERANCE: Final = 1e-2
_TEXTS: Final = ("", "a", "The server embeds this text before it takes any other.", "é 漢 🙂 " * 9)
_TIMED_ROWS: Final = 8
_TIMED_TOKENS: Final = 64


class Outcome(IntEnum):
    """How a row's vector came out."""

    FINITE = 0
    RECOMPUTED = 1  # it was not finite, and is from the safe precision
    LOST = 2  # it was not finite there either


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What computes.

    Args:
        encoder: The model.
        open_safe: Returns the model in a precision that does not overflow, without prefixes.
        golden: The reference's vectors of a few texts, which the encoder's must equal.
        prefix_ids: The token ids of each prompt's cached prefix.
    """

    encoder: Encoder
    open_safe: Callable[[], Encoder]
    golden: Sequence[GoldenVector] = ()
    prefix_ids: Mapping[Prompt, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and has passed its test."""

    backend: str
    compute_label: str
    limits: BatchLimits
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Unusable:
    """The model cannot be served; the message says what was expected, found, and what to do."""

    message: str


@dataclass(frozen=True, slots=True)
class EncodeBatch:
    """Token ids to encode together.

    Args:
        number: Identifies the batch.
        rows: Token ids of each text, after the cached prefix.
        prompt: Whose cached prefix all rows follow; None for none.
        cached_tokens: How many tokens of that prefix, from its start.
        prompt_tokens: How many tokens at each text's start pooling leaves out; None for none.
    """

    number: int
    rows: list[list[int]]
    prompt: Prompt | None = None
    cached_tokens: int = 0
    prompt_tokens: list[int] | None = None

    def row(self, index: int) -> "EncodeBatch":
        """Return one of its texts alone."""
        counts = None if self.prompt_tokens is None else [self.prompt_tokens[index]]
        return replace(self, rows=[self.rows[index]], prompt_tokens=counts)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A batch's vectors in order, (N, D) float32, and the (N,) Outcome of each row."""

    number: int
    vectors: np.ndarray
    outcomes: np.ndarray
    seconds: float


def main(connection: Connection, load_model: Callable[[], LoadedModel]) -> None:
    """Load the model, report it ready, and compute until the other end is gone."""
    # Ctrl-C reaches the whole group of processes; the one that answers says when to end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        model = load_model()
        connection.send(self_test(model.encoder, model.golden))
    except AnnaError as error:
        connection.send(Unusable(str(error)))
        return
    try:
        while True:
            batch = connection.recv()
            started = time.perf_counter()
            vectors, outcomes = compute_finite(model, batch)
            seconds = time.perf_counter() - started
            connection.send(BatchResult(batch.number, vectors, outcomes, seconds))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def compute(
    encoder: Encoder,
    rows: Sequence[Sequence[int]],
    prefix: Prefix | None = None,
    prompt_tokens: Sequence[int] | None = None,
) -> np.ndarray:
    """Return (N, D) float32 vectors, finite or not, of token id rows after a prefix, in a batch."""
    batch = TokenBatch.of_rows(rows, encoder.tokeniser.framing.pad_id, prefix, prompt_tokens)
    return np.array(encoder.backend.run(batch), dtype=np.float32)


def compute_finite(model: LoadedModel, batch: EncodeBatch) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, D) vectors and the (N,) outcomes; rows that are not finite are computed again."""
    vectors = _compute_batch(model.encoder, batch, model.prefix_ids)
    outcomes = np.full(len(vectors), Outcome.FINITE, dtype=np.uint8)
    for index in np.flatnonzero(~np.isfinite(vectors).all(axis=1)):
        vector, row = vectors[index], batch.row(index)
        try:
            (vector,) = _compute_batch(model.open_safe(), row, model.prefix_ids)
        except Exception as error:  # no memory, say: this row is lost, the others are not
            log("safe precision failed", error=type(error).__name__)
        is_finite = bool(np.isfinite(vector).all())
        vectors[index] = vector if is_finite else 0
        outcomes[index] = Outcome.RECOMPUTED if is_finite else Outcome.LOST
    return vectors, outcomes


def _compute_batch(
    encoder: Encoder, batch: EncodeBatch, prefix_ids: Mapping[Prompt, Sequence[int]]
) -> np.ndarray:
    """Return a batch's vectors; an encoder without cached prefixes computes them too."""
    if batch.prompt is None:
        return compute(encoder, batch.rows, None, batch.prompt_tokens)
    if encoder.prefixes is None:
        ids = prefix_ids[batch.prompt][: batch.cached_tokens]
        rows = [[*ids, *row] for row in batch.rows]
        return compute(encoder, rows, None, batch.prompt_tokens)
    prefix = encoder.prefixes.load(batch.prompt)
    if batch.cached_tokens < len(prefix):
        prefix = prefix.first(batch.cached_tokens)
    return compute(encoder, batch.rows, prefix, batch.prompt_tokens)


def self_test(encoder: Encoder, golden: Sequence[GoldenVector] = ()) -> Ready:
    """Embed golden texts, and a few in one batch and in batches of one, and measure the rate.

    Raises:
        DamagedError: If a vector is not finite, not of the model's unit length, not that of the
            same text in another batch, or not what it was when the artifact was proved.
    """
    label = encoder.backend.compute_label
    if golden:
        require_golden(golden, compute(encoder, [text.ids for text in golden]), label)
    rows = encoder.tokeniser.ids(_TEXTS)
    together = compute(encoder, rows)
    worst = cosines(together, np.concatenate([compute(encoder, [row]) for row in rows])).min()
    normalizes = encoder.backend.spec.head.normalize
    length_error = length_errors(together).max() if normalizes else 0.0
    if not length_error < _LENGTH_TOLERANCE or not worst >= _MIN_COSINE:
        lengths = f"lengths up to {length_error:.3f} from 1 and " if normalizes else ""
        raise DamagedError(
            f"expected {'unit ' * normalizes}vectors that are the same at batch size 1 and in a "
            f"batch, found {lengths}a cosine of {worst:.3f} in {label}; run anna-export verify"
        )
    width = min(_TIMED_TOKENS, encoder.tokeniser.framing.max_tokens)
    timed = [[rows[0][0]] * width] * _TIMED_ROWS
    started = time.perf_counter()
    compute(encoder, timed)
    rate = _TIMED_ROWS * width / max(time.perf_counter() - started, 1e-9)
    return Ready(encoder.backend.name, label, encoder.limits, rate)
