"""What a baseline is asked and how it answers, in whatever environment it runs; needs only numpy.

    python -m benchmarks.baselines.NAME convert|check|measure JOB ANSWER

`convert` writes what it serves, `check` embeds each text alone and all in one batch, `measure`
times every shape. JOB and ANSWER are JSON files; vectors go into an .npz beside the answer.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Rows = list[list[int]]
# sentence-transformers' batch_size
BATCH_TEXTS = 32


@dataclass(frozen=True, slots=True)
class Job:
    """One baseline's job.

    Args:
        base: The model in fp32, as a Hugging Face folder.
        traced: Folder of the fp32 ONNX file that PyTorch's tracer made of it.
        served: Folder of what the baseline serves; `convert` fills it.
        variant: Which of a module's baselines is meant.
        threads: CPU threads.
        min_seconds: How long a shape is repeated, at least once.
        shapes: Rows of token ids by the name of their shape.
        parity: Rows of mixed lengths whose vectors are compared.
        calibration: Rows that a baseline may calibrate on; none of them is timed.
    """

    base: Path
    traced: Path
    served: Path
    variant: str
    threads: int
    min_seconds: float
    shapes: dict[str, Rows]
    parity: Rows
    calibration: Rows

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Read what `write` wrote."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**fields, **{name: Path(fields[name]) for name in _PATHS}})

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields |= {name: str(fields[name]) for name in _PATHS}
        path.write_text(json.dumps(fields), encoding="utf-8")


_PATHS = ("base", "traced", "served")


class Model(Protocol):
    """A loaded baseline."""

    def embed(self, rows: Rows) -> np.ndarray:
        """Embed rows as its users would; (N, D) float32 in the order given."""
        ...

    def embed_batch(self, rows: Rows) -> np.ndarray:
        """The same, all of them in one batch."""
        ...


class PaddedModel:
    """A baseline that is given right-padded batches, as sentence-transformers makes them.

    Args:
        run: Takes ids and mask (B, S) int64, returns vectors (B, D).
    """

    def __init__(self, run: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self._run = run

    def embed(self, rows: Rows) -> np.ndarray:
        """Embed rows sorted by length, longest first, in batches of BATCH_TEXTS."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        batches = [order[start : start + BATCH_TEXTS] for start in range(0, len(rows), BATCH_TEXTS)]
        vectors = [self.embed_batch([rows[index] for index in batch]) for batch in batches]
        return np.concatenate(vectors)[np.argsort(order)]

    def embed_batch(self, rows: Rows) -> np.ndarray:
        """Embed rows as one batch, padded to the longest."""
        lengths = np.array([len(row) for row in rows])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        ids = np.zeros_like(mask)
        ids[mask == 1] = np.concatenate(rows)
        return self._run(ids, mask)


def answer(open_model: Callable[[Job], Model], convert: Callable[[Job], None]) -> None:
    """Do what the command line asks of a baseline."""
    task, job_path, answer_path = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    job = Job.read(job_path)
    answered: dict[str, Any] = {}
    if task == "convert":
        convert(job)
    else:
        model = open_model(job)
        if task == "check":
            alone = np.concatenate([model.embed_batch([row]) for row in job.parity])
            np.savez(
                answer_path.with_suffix(".npz"), alone=alone, batch=model.embed_batch(job.parity)
            )
        else:
            answered["seconds"] = {
                name: _measure(model, rows, job.min_seconds) for name, rows in job.shapes.items()
            }
    answered["peak_bytes"] = peak_bytes()
    answer_path.write_text(json.dumps(answered), encoding="utf-8")


def peak_bytes() -> int:
    """Return what this process had resident at most; ru_maxrss would count its parent too."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _measure(model: Model, rows: Rows, min_seconds: float) -> list[float]:
    """Time one shape until min_seconds have passed, at least once.

    Rows of one length are embedded once before, for what a runtime does at a shape's first sight.
    A mix is not: in use too, nearly every batch of it has a shape of its own.
    """
    if len({len(row) for row in rows}) == 1:
        model.embed(rows)
    seconds: list[float] = []
    while sum(seconds) < min_seconds:
        started = time.perf_counter()
        model.embed(rows)
        seconds.append(time.perf_counter() - started)
    return seconds
