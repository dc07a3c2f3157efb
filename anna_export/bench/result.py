"""What bench.json holds: every run of an artifact, by what it ran on."""

import json
import os
from typing import Any, Final, Literal

import psutil
from pydantic import BaseModel, ConfigDict

from anna_export.artifact.evidence import add_evidence, read_evidence
from anna_export.artifact.folder import Artifact
from anna_export.bench.statistics import Interval
from anna_export.errors import DamagedError
from anna_export.files.validation import validated
from anna_export.machine.gpu import find_device
from anna_export.machine.hardware import hardware
from anna_export.machine.versions import installed

BENCH_FILE: Final = "bench.json"
SCHEMA_VERSION: Final = 3
# by today's names, what schema 2 called otherwise
_SCHEMA_2: Final = {
    "arithmetic": "compute",
    "alone_cosine": "batch1_worst_cosine",
    "rival": "baseline",
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Versus(_Model):
    """One shape against a baseline: how many times as fast as it."""

    seconds: list[list[float]]  # the baseline's, by round and call
    ratio: Interval
    verdict: (
        str  # "faster", "slower" or "no difference"; "not the same vectors" where parity failed
    )


class ClosedLoop(_Model):
    """One shape in a closed loop: the next batch is sent when the last one is done."""

    batch: int
    tokens: int
    seconds: list[list[float]]  # by round and call
    p50_ms: float
    p90_ms: float
    p99_ms: float
    texts_per_second: Interval
    tokens_per_second: Interval
    versus: Versus | None = None


class OpenLoop(_Model):
    """Single texts that arrive as a Poisson process, those that wait embedded together."""

    rate: float  # texts a second
    tokens: int
    texts: int
    latencies: list[float]  # seconds, from when a text arrives
    p50_ms: float
    p90_ms: float
    p99_ms: float
    kept_up: bool  # whether texts waited no longer at the end than at the start


class Baseline(_Model):
    """What the artifact was compared with, and how alike their vectors were."""

    name: str
    compute: str  # what it computes in, in words
    worst_cosine: float
    mean_cosine: float


class Environment(_Model):
    """What figures depend on."""

    hardware: str
    cores: int
    threads: int | None
    mhz: float | None
    gpu_driver: str | None
    versions: dict[str, str]


class Run(_Model):
    """One run of bench."""

    name: str
    compute: str  # what the artifact computes in, in words
    precision: str
    prompt: str | None
    warm_up_calls: int
    rounds: int
    batch1_worst_cosine: float  # of a text at batch size 1 to itself in a batch, before timing
    environment: Environment
    rows: list[ClosedLoop]
    open: list[OpenLoop]
    baseline: Baseline | None

    @property
    def key(self) -> tuple[str, str, str | None, str | None]:
        """What a later run replaces this one by."""
        baseline = self.baseline.name if self.baseline is not None else None
        return self.compute, self.environment.hardware, self.prompt, baseline


class Bench(_Model):
    """All runs of an artifact."""

    schema_version: Literal[3] = SCHEMA_VERSION
    runs: list[Run]


def environment(threads: int | None) -> Environment:
    """Return what this machine and process are."""
    clock = psutil.cpu_freq()
    device = find_device()
    return Environment(
        hardware=hardware(),
        cores=len(os.sched_getaffinity(0)),
        threads=threads,
        mhz=round(clock.current, 1) if clock is not None else None,
        gpu_driver=device.driver if device is not None else None,
        versions=installed(),
    )


def read_bench(artifact: Artifact) -> Bench | None:
    """Read the runs of an artifact's weights; None if there are none.

    Raises:
        DamagedError: If they are not what the manifest lists, or of another version.
    """
    entry = artifact.manifest.evidence.get(BENCH_FILE)
    if entry is None or entry.covers != artifact.manifest.artifact_id:
        return None
    content = read_evidence(artifact, BENCH_FILE) or {}
    return validated(
        Bench,
        _upgrade(content) if "schema_version" not in content else content,
        artifact.folder / BENCH_FILE,
        error=DamagedError,
        remedy="run anna-export bench again",
    )


def _upgrade(content: Any) -> Any:
    """Return what schema 2, which bore no number, holds by today's names."""
    if isinstance(content, dict):
        return {_SCHEMA_2.get(name, name): _upgrade(value) for name, value in content.items()}
    return list(map(_upgrade, content)) if isinstance(content, list) else content


def add_run(artifact: Artifact, run: Run) -> Artifact:
    """Write a run beside the others, in place of an earlier one of the same kind."""
    try:
        stored = read_bench(artifact)
    except DamagedError:  # this one takes its place
        stored = None
    earlier = stored.runs if stored is not None else []
    runs = [*(other for other in earlier if other.key != run.key), run]
    text = json.dumps(Bench(runs=runs).model_dump(mode="json"), indent=1) + "\n"
    return add_evidence(artifact, BENCH_FILE, text, prompts=())
