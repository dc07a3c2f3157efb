"""What bench.json holds: every run of an artifact, by what it ran on."""

import json
import os
from typing import Final

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from anna_export.artifact.evidence import add_evidence, read_evidence
from anna_export.artifact.folder import Artifact
from anna_export.errors import DamagedError
from anna_export.machine.gpu import find_device
from anna_export.machine.hardware import hardware
from anna_export.machine.versions import installed

BENCH_FILE: Final = "bench.json"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(_Model):
    """A value, and between what another run like this one would find it."""

    value: float
    low: float
    high: float


class Versus(_Model):
    """One shape against a rival: how many times as fast as it."""

    seconds: list[list[float]]  # the rival's, by round and call
    ratio: Spread
    verdict: (
        str  # "faster", "slower" or "no difference"; "not the same vectors" where parity failed
    )


class Row(_Model):
    """One shape in a closed loop: the next batch is sent when the last one is done."""

    batch: int
    tokens: int
    seconds: list[list[float]]  # by round and call
    p50_ms: float
    p90_ms: float
    p99_ms: float
    texts_per_second: Spread
    tokens_per_second: Spread
    versus: Versus | None = None


class Open(_Model):
    """Single texts that arrive as a Poisson process, those that wait embedded together."""

    rate: float  # texts a second
    tokens: int
    texts: int
    latencies: list[float]  # seconds, from when a text arrives
    p50_ms: float
    p90_ms: float
    p99_ms: float
    kept_up: bool  # whether texts waited no longer at the end than at the start


class Rival(_Model):
    """What the artifact was held against, and how alike their vectors were."""

    name: str
    arithmetic: str
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
    arithmetic: str
    precision: str
    prompt: str | None
    warm_up_calls: int
    rounds: int
    alone_cosine: (
        float  # worst of a text alone against itself in a batch, before anything was timed
    )
    environment: Environment
    rows: list[Row]
    open: list[Open]
    rival: Rival | None

    @property
    def key(self) -> tuple[str, str, str | None, str | None]:
        """What a later run takes the place of."""
        rival = self.rival.name if self.rival is not None else None
        return self.arithmetic, self.environment.hardware, self.prompt, rival


class Bench(_Model):
    """All runs of an artifact."""

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
    found = read_evidence(artifact, BENCH_FILE)
    try:
        return Bench.model_validate(found)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedError(
            f"expected runs of bench in {artifact.folder / BENCH_FILE}, found {place}: "
            f"{first['msg']}; run anna-export bench again"
        ) from None


def add_run(artifact: Artifact, run: Run) -> Artifact:
    """Write a run beside the others, in place of an earlier one of the same kind."""
    try:
        found = read_bench(artifact)
    except DamagedError:  # this one takes its place
        found = None
    known = found.runs if found is not None else []
    runs = [*(other for other in known if other.key != run.key), run]
    text = json.dumps(Bench(runs=runs).model_dump(mode="json"), indent=1) + "\n"
    return add_evidence(artifact, BENCH_FILE, text, prompts=())
