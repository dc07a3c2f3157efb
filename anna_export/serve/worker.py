"""The process that computes: token ids come in through a pipe, vectors go back.

It stands apart from the one that answers requests, so that a crash of native code costs what it was
computing and nothing else.
"""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

import numpy as np

from anna_export.encoder import Encoder
from anna_export.errors import AnnaError, DamagedError
from anna_export.serve.log import log
from anna_export.text.batching import BatchLimits, by_prefix
from anna_export.text.prompts import Prompt
from anna_export.verify.golden import GoldenVector, require_golden

# What became of a row.
FINE: Final = 0
RECOMPUTED: Final = 1  # it was not finite, and is from the safe precision
LOST: Final = 2  # it was not finite in either
# A text alone against itself among others: what is worse than this computes wrongly.
_LEAST_COSINE: Final = 0.99
_UNIT: Final = 1e-2
_TEXTS: Final = ("", "a", "The server embeds this text before it takes any other.", "é 漢 🙂 " * 9)
_MEASURED_ROWS: Final = 8
_MEASURED_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Served:
    """What computes.

    Args:
        encoder: The model.
        open_safe: Opens it in a precision that does not overflow; called when it is first needed.
        golden: The reference's vectors of a few texts, which its own are held to.
    """

    encoder: Encoder
    open_safe: Callable[[], Encoder]
    golden: Sequence[GoldenVector] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and has passed its test."""

    backend: str
    arithmetic: str
    limits: BatchLimits
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Unusable:
    """The model cannot be served; the message says what was expected, found, and what to do."""

    message: str


@dataclass(frozen=True, slots=True)
class Work:
    """One batch: token id rows, all behind one prompt's prefix or behind none."""

    number: int
    rows: list[list[int]]
    prompt: Prompt | None


@dataclass(frozen=True, slots=True)
class Done:
    """A batch's vectors, in order: (N, D) float32, and (N,) what became of each row."""

    number: int
    vectors: np.ndarray
    became: np.ndarray
    seconds: float


def main(connection: Connection, open_served: Callable[[], Served]) -> None:
    """Load the model, say so, and compute until the other end is gone."""
    # Ctrl-C reaches the whole group of processes; the one that answers says when to end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        served = open_served()
        connection.send(self_test(served.encoder, served.golden))
    except AnnaError as error:
        connection.send(Unusable(str(error)))
        return
    safe: list[Encoder] = []

    def recompute(rows: Sequence[Sequence[int]]) -> np.ndarray:
        if not safe:
            safe.append(served.open_safe())
        return compute(safe[0], rows, None)

    try:
        while True:
            work = connection.recv()
            started = time.perf_counter()
            vectors, became = compute_finite(served.encoder, work, recompute)
            connection.send(Done(work.number, vectors, became, time.perf_counter() - started))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def compute(encoder: Encoder, rows: Sequence[Sequence[int]], prompt: Prompt | None) -> np.ndarray:
    """Return (N, D) float32 vectors of token id rows, finite or not, all in as few batches."""
    placed = encoder.behind_prefixes(rows, [] if prompt is None else [prompt])
    vectors = np.empty((len(rows), encoder.dim), dtype=np.float32)
    for members in by_prefix(placed):
        vectors[members] = encoder.backend.run(encoder.batch([placed[place] for place in members]))
    return vectors


def compute_finite(
    encoder: Encoder, work: Work, recompute: Callable[[Sequence[Sequence[int]]], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, D) vectors and (N,) what became of them; rows that are not finite once more.

    Args:
        encoder: What computes.
        work: The batch.
        recompute: Computes rows in the safe precision; it may raise that it cannot.
    """
    vectors = compute(encoder, work.rows, work.prompt)
    became = np.full(len(vectors), FINE, dtype=np.uint8)
    for place in np.flatnonzero(~np.isfinite(vectors).all(axis=1)):
        try:
            again = recompute([work.rows[place]])[0]
        except Exception as error:  # no memory, say: the row is lost, its neighbours are not
            log("safe precision failed", error=type(error).__name__)
            again = vectors[place]
        fine = bool(np.isfinite(again).all())
        vectors[place] = again if fine else 0
        became[place] = RECOMPUTED if fine else LOST
    return vectors, became


def self_test(encoder: Encoder, golden: Sequence[GoldenVector] = ()) -> Ready:
    """Embed golden texts, and a few alone and together, and measure how fast.

    Raises:
        DamagedError: If a vector is not finite, not of unit length, not that of the same text among
            others, or not what it was when the artifact was proved.
    """
    if golden:
        found = compute(encoder, [one.ids for one in golden], None)
        require_golden(golden, found, encoder.backend.arithmetic)
    rows = encoder.tokeniser.ids(_TEXTS)
    together = compute(encoder, rows, None)
    alone = np.concatenate([compute(encoder, [row], None) for row in rows])
    lengths = np.linalg.norm(together.astype(np.float64), axis=1)
    cosines = (together.astype(np.float64) * alone).sum(axis=1)
    worst = float(np.nan_to_num(cosines, nan=-1).min())
    if not (np.abs(lengths - 1) < _UNIT).all() or worst < _LEAST_COSINE:
        raise DamagedError(
            f"expected unit vectors that are the same alone and in a batch, found lengths "
            f"{np.round(lengths, 3).tolist()} and a cosine of {worst:.3f} in "
            f"{encoder.backend.arithmetic}; run anna-export verify"
        )
    width = min(_MEASURED_TOKENS, encoder.tokeniser.contract.max_tokens)
    many = [[row[0] for _ in range(width)] for row in rows[:1] * _MEASURED_ROWS]
    started = time.perf_counter()
    compute(encoder, many, None)
    seconds = time.perf_counter() - started
    rate = len(many) * width / max(seconds, 1e-9)
    backend = encoder.backend
    return Ready(backend.name, backend.arithmetic, encoder.limits, rate)
