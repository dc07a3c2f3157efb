"""The flow: parity first, then every shape in turn, then texts that arrive."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from anna_export.artifact.folder import Artifact
from anna_export.bench.opening import OpenArtifact, Opened
from anna_export.bench.process import Arrivals, BaselineInfo, EmbedProcess
from anna_export.bench.result import Baseline, ClosedLoop, OpenLoop, Run, Versus, environment
from anna_export.bench.statistics import compare, interval, percentiles
from anna_export.bench.workload import Shape, texts_of
from anna_export.cosine import cosines, length_errors
from anna_export.errors import InputError, ParityError
from anna_export.progress import Progress, Stage
from anna_export.quantise import scheme_of

# Distinct calls of one shape; they are taken in turn.
_CALLS: Final = 4
_WARM_UP_CALLS: Final = 2
_PARITY_TEXTS: Final = 12
_OPEN_TEXTS_MOST: Final = 2000
_OPEN_BATCH: Final = 32
# A queue that grows by this share of the time has more coming in than going out.
_GROWTH: Final = 0.05
# Vectors less alike are not those of the same model: whatever its speed, it wins nothing.
SAME_VECTORS: Final = 0.98
_BATCH1_MIN_COSINE: Final = 0.9999  # where a precision has no bound of its own
_LENGTH_TOLERANCE: Final = 1e-2
# Processes are started so often: one may be faster than the next for all its life.
_STARTS: Final = 3
_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be timed.

    Args:
        shapes: Batches, in a closed loop.
        rates: Texts a second that arrive, in an open one.
        rate_tokens: Tokens of those.
        rounds: How often every shape has its turn.
        round_seconds: Least time of one turn.
        open_seconds: How long texts arrive at each rate.

    Raises:
        InputError: If a number is too small to say anything.
    """

    shapes: Sequence[Shape]
    rates: Sequence[float] = ()
    rate_tokens: int = 64
    rounds: int = 6
    round_seconds: float = 0.2
    open_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.rounds < 3:
            raise InputError(f"expected `rounds` of at least 3, found {self.rounds}")
        if any(not rate > 0 for rate in self.rates):
            raise InputError(f"expected `rates` above 0, found {min(self.rates)}")


def bench(
    artifact: Artifact,
    ours: OpenArtifact,
    plan: Plan,
    open_baseline: Callable[[], Opened] | None,
    stage: Stage,
) -> Run:
    """Time an artifact, in turn with a baseline if there is one.

    Raises:
        ParityError: If its vectors are not finite, of unit length, or the same alone and together.
        AnnaError: If it or the baseline cannot be opened.
    """
    tokeniser, manifest = artifact.tokeniser(), artifact.manifest
    prompt = manifest.prompts.find(ours.prompt)
    calls = {shape: texts_of(tokeniser, prompt, shape, _CALLS) for shape in plan.shapes}
    openings: list[Callable[[], Opened]] = [ours, *([open_baseline] if open_baseline else [])]
    seconds: list[Seconds] = [{shape: [] for shape in calls} for _ in openings]
    loops: list[OpenLoop] = []
    parity: _Parity | None = None
    with stage("time", "measurements") as progress:
        clock = _Clock(plan.rounds * len(calls) * len(openings), progress)
        for start in range(_STARTS):
            with ExitStack() as stack:
                processes = [stack.enter_context(EmbedProcess(opening)) for opening in openings]
                if parity is None:
                    parity = _check(processes, _some_of(calls), _batch1_min_cosine(artifact))
                rounds = range(start, plan.rounds, _STARTS)
                _time_rounds(processes, calls, rounds, plan.round_seconds, seconds, clock)
                if start == _STARTS - 1 and plan.rates:
                    loops = _open_loops(processes[0], artifact, ours, plan)
    assert parity is not None
    return Run(
        **asdict(parity.info),
        precision=str(manifest.precision),
        prompt=ours.prompt,
        warm_up_calls=_WARM_UP_CALLS,
        rounds=plan.rounds,
        batch1_worst_cosine=parity.batch1_worst_cosine,
        environment=environment(ours.threads),
        rows=[
            _closed_loop(shape, [times[shape] for times in seconds], parity.baseline)
            for shape in plan.shapes
        ],
        open=loops,
        baseline=parity.baseline,
    )


@dataclass(frozen=True, slots=True)
class _Parity:
    """What is known of the vectors before anything is timed."""

    info: BaselineInfo
    batch1_worst_cosine: float
    baseline: Baseline | None


def _check(processes: Sequence[EmbedProcess], texts: list[str], min_cosine: float) -> _Parity:
    ours, *baselines = processes
    worst = _require_sound(ours, texts, min_cosine)
    compared = [_compare_vectors(ours, baseline, texts) for baseline in baselines]
    return _Parity(ours.info, worst, compared[0] if compared else None)


def _some_of(calls: Mapping[Shape, list[list[str]]]) -> list[str]:
    """Return some of the texts that are timed, of every shape, each once."""
    share = max(1, _PARITY_TEXTS // len(calls))
    return [text for several in calls.values() for text in several[0][:share]]


def _batch1_min_cosine(artifact: Artifact) -> float:
    limit = scheme_of(artifact.manifest).thresholds.batch1_min_cosine
    return _BATCH1_MIN_COSINE if limit is None else limit


def _require_sound(ours: EmbedProcess, texts: list[str], limit: float) -> float:
    """Return the worst cosine of a text at batch size 1 to the same text in a batch.

    Raises:
        ParityError: If it is below the limit, or a vector is not of unit length.
    """
    together = ours.vectors(texts)
    worst = float(cosines(together, np.concatenate([ours.vectors([text]) for text in texts])).min())
    length_error = length_errors(together).max()
    if worst < limit or not length_error < _LENGTH_TOLERANCE:
        raise ParityError(
            f"expected unit vectors that are the same at batch size 1 and in a batch (cosine at "
            f"least {limit}) before they are timed, found a cosine of {worst:.7f} and lengths up "
            f"to {length_error:.3f} from 1 from {ours.info.name}; run anna-export verify"
        )
    return worst


def _compare_vectors(ours: EmbedProcess, theirs: EmbedProcess, texts: list[str]) -> Baseline:
    """Compare vectors of the same texts."""
    vectors, others = ours.vectors(texts), theirs.vectors(texts)
    # of another dimension: as unlike as can be
    same_shape = vectors.shape == others.shape
    likeness = cosines(vectors, others) if same_shape else np.full(len(texts), -1.0)
    return Baseline(
        name=theirs.info.name,
        compute=theirs.info.compute,
        worst_cosine=float(likeness.min()),
        mean_cosine=float(likeness.mean()),
    )


# by shape: the seconds of each round's calls
Seconds = dict[Shape, list[list[float]]]


@dataclass(slots=True)
class _Clock:
    """Counts measurements for whoever watches."""

    total: int
    progress: Progress | None
    done: int = 0

    def tick(self) -> None:
        """Count one."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


def _time_rounds(
    processes: Sequence[EmbedProcess],
    calls: Mapping[Shape, list[list[str]]],
    rounds: Sequence[int],
    least_seconds: float,
    seconds: Sequence[Seconds],
    clock: _Clock,
) -> None:
    """Time every shape in every round, in all processes one right after the other."""
    for texts in calls.values():
        for process in processes:
            process.seconds(texts[:_WARM_UP_CALLS], 0)
    for number in rounds:
        for shape, texts in calls.items():
            # whoever comes second does not always do so
            order = list(enumerate(processes))
            for index, process in order if number % 2 == 0 else order[::-1]:
                seconds[index][shape].append(process.seconds(texts, least_seconds))
                clock.tick()


def _open_loops(
    process: EmbedProcess, artifact: Artifact, ours: OpenArtifact, plan: Plan
) -> list[OpenLoop]:
    """Time texts that arrive, at each rate."""
    prompt = artifact.manifest.prompts.find(ours.prompt)
    count = min(_OPEN_TEXTS_MOST, int(max(plan.rates) * plan.open_seconds) + 1)
    calls = texts_of(artifact.tokeniser(), prompt, Shape(1, plan.rate_tokens), count)
    return [_open_loop(process, [text for (text,) in calls], rate, plan) for rate in plan.rates]


def _closed_loop(
    shape: Shape, seconds: Sequence[list[list[float]]], baseline: Baseline | None
) -> ClosedLoop:
    ours = seconds[0]
    medians = [statistics.median(calls) for calls in ours]
    return ClosedLoop(
        batch=shape.batch,
        tokens=shape.tokens,
        seconds=ours,
        **percentiles([second for calls in ours for second in calls]),
        texts_per_second=interval([shape.batch / median for median in medians]),
        tokens_per_second=interval([shape.batch * shape.tokens / median for median in medians]),
        versus=None if baseline is None else _versus(medians, seconds[1], baseline),
    )


def _versus(medians: list[float], seconds: list[list[float]], baseline: Baseline) -> Versus:
    comparison = compare(medians, [statistics.median(calls) for calls in seconds])
    same = baseline.worst_cosine >= SAME_VECTORS
    return Versus(
        seconds=seconds,
        ratio=comparison.ratio,
        verdict=comparison.verdict if same else "not the same vectors",
    )


def _open_loop(process: EmbedProcess, texts: list[str], rate: float, plan: Plan) -> OpenLoop:
    count = min(len(texts), max(1, int(rate * plan.open_seconds)))
    drawn = random.Random(_SEED)
    due, at = [], 0.0
    for _ in range(count):
        at += drawn.expovariate(rate)
        due.append(at)
    latencies = process.latencies(Arrivals(texts[:count], due, _OPEN_BATCH))
    fifth = max(1, count // 5)
    first, last = (statistics.median(part) for part in (latencies[:fifth], latencies[-fifth:]))
    return OpenLoop(
        rate=rate,
        tokens=plan.rate_tokens,
        texts=count,
        latencies=latencies,
        **percentiles(latencies),
        kept_up=last < first + _GROWTH * at,
    )
