"""The flow: parity first, then every shape in turn, then texts that arrive."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import numpy as np

from anna_export.artifact.folder import Artifact
from anna_export.bench.contenders import OpenArtifact, Opened
from anna_export.bench.process import Arrivals, ContenderProcess, Told
from anna_export.bench.result import Open, Rival, Row, Run, Spread, Versus, environment
from anna_export.bench.statistics import Comparison, Interval, compare, interval, percentiles
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
# Below these, vectors are not those of the same model: whoever made them wins nothing.
SAME_VECTORS: Final = 0.98
_ALONE: Final = 0.9999  # where a precision has no bound of its own
_LENGTH_TOLERANCE: Final = 1e-2
# Contenders are opened so often: one process may be faster than the next for all its life.
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
            raise InputError(f"expected --rounds of at least 3, found {self.rounds}")
        if any(not rate > 0 for rate in self.rates):
            raise InputError(f"expected --rate above 0, found {min(self.rates)}")


def bench(
    artifact: Artifact,
    own: OpenArtifact,
    plan: Plan,
    opening_rival: Callable[[], Opened] | None,
    stage: Stage,
) -> Run:
    """Time an artifact, in turn with a rival if there is one.

    Raises:
        ParityError: If its vectors are not finite, of unit length, or the same alone and together.
        AnnaError: If it or the rival cannot be opened.
    """
    tokeniser, manifest = artifact.tokeniser(), artifact.manifest
    prompt = manifest.prompts.find(own.prompt)
    calls = {shape: texts_of(tokeniser, prompt, shape, _CALLS) for shape in plan.shapes}
    openings: list[Callable[[], Opened]] = [own, *([opening_rival] if opening_rival else [])]
    seconds: list[Seconds] = [{shape: [] for shape in calls} for _ in openings]
    opened: list[Open] = []
    told: Told | None = None
    alone, rival = 0.0, None
    with stage("time", "measurements") as progress:
        clock = _Clock(plan.rounds * len(calls) * len(openings), progress)
        for start in range(_STARTS):
            with ExitStack() as stack:
                found = [stack.enter_context(ContenderProcess(one)) for one in openings]
                if told is None:
                    told = found[0].told
                    texts = _some_of(calls)
                    alone = _require_sound(found[0], texts, _alone_limit(artifact))
                    rival = _hold_against(found[0], found[1], texts) if opening_rival else None
                rounds = range(start, plan.rounds, _STARTS)
                _time_rounds(found, calls, rounds, plan.round_seconds, seconds, clock)
                if start == _STARTS - 1 and plan.rates:
                    opened = _open_loops(found[0], artifact, own, plan)
    assert told is not None
    return Run(
        name=told.name,
        arithmetic=told.arithmetic,
        precision=str(manifest.precision),
        prompt=own.prompt,
        warm_up_calls=_WARM_UP_CALLS,
        rounds=plan.rounds,
        alone_cosine=alone,
        environment=environment(own.threads),
        rows=[_row(shape, [one[shape] for one in seconds], rival) for shape in plan.shapes],
        open=opened,
        rival=rival,
    )


def _some_of(calls: Mapping[Shape, list[list[str]]]) -> list[str]:
    """Return some of the texts that are timed, of every shape, each once."""
    share = max(1, _PARITY_TEXTS // len(calls))
    return [text for several in calls.values() for text in several[0][:share]]


def _alone_limit(artifact: Artifact) -> float:
    limit = scheme_of(artifact.manifest).thresholds.batch1_min_cosine
    return _ALONE if limit is None else limit


def _require_sound(ours: ContenderProcess, texts: list[str], limit: float) -> float:
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
            f"to {length_error:.3f} from 1 from {ours.told.name}; run anna-export verify"
        )
    return worst


def _hold_against(ours: ContenderProcess, theirs: ContenderProcess, texts: list[str]) -> Rival:
    """Compare vectors of the same texts."""
    vectors, others = ours.vectors(texts), theirs.vectors(texts)
    # of another dimension: as unlike as can be
    same_shape = vectors.shape == others.shape
    likeness = cosines(vectors, others) if same_shape else np.full(len(texts), -1.0)
    return Rival(
        name=theirs.told.name,
        arithmetic=theirs.told.arithmetic,
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
    contenders: Sequence[ContenderProcess],
    calls: Mapping[Shape, list[list[str]]],
    rounds: Sequence[int],
    least_seconds: float,
    seconds: Sequence[Seconds],
    clock: _Clock,
) -> None:
    """Time every shape of every contender in every round, contenders one right after the other."""
    for texts in calls.values():
        for contender in contenders:
            contender.seconds(texts[:_WARM_UP_CALLS], 0)
    for number in rounds:
        for shape, texts in calls.items():
            # whoever comes second does not always do so
            order = list(enumerate(contenders))
            for place, contender in order if number % 2 == 0 else order[::-1]:
                seconds[place][shape].append(contender.seconds(texts, least_seconds))
                clock.tick()


def _open_loops(
    ours: ContenderProcess, artifact: Artifact, own: OpenArtifact, plan: Plan
) -> list[Open]:
    """Time texts that arrive, at each rate."""
    prompt = artifact.manifest.prompts.find(own.prompt)
    count = min(_OPEN_TEXTS_MOST, int(max(plan.rates) * plan.open_seconds) + 1)
    made = texts_of(artifact.tokeniser(), prompt, Shape(1, plan.rate_tokens), count)
    return [_open(ours, [text for (text,) in made], rate, plan) for rate in plan.rates]


def _row(shape: Shape, seconds: Sequence[list[list[float]]], rival: Rival | None) -> Row:
    own = seconds[0]
    medians = [statistics.median(one) for one in own]
    versus = None
    if rival is not None:
        theirs = [statistics.median(one) for one in seconds[1]]
        versus = _versus(compare(medians, theirs), seconds[1], rival)
    rate = interval([shape.batch / one for one in medians])
    tokens = interval([shape.batch * shape.tokens / one for one in medians])
    return Row(
        batch=shape.batch,
        tokens=shape.tokens,
        seconds=own,
        **percentiles([second for one in own for second in one]),
        texts_per_second=_spread(rate),
        tokens_per_second=_spread(tokens),
        versus=versus,
    )


def _versus(comparison: Comparison, seconds: list[list[float]], rival: Rival) -> Versus:
    same = rival.worst_cosine >= SAME_VECTORS
    return Versus(
        seconds=seconds,
        ratio=_spread(comparison.ratio),
        verdict=comparison.verdict if same else "not the same vectors",
    )


def _open(ours: ContenderProcess, texts: list[str], rate: float, plan: Plan) -> Open:
    count = min(len(texts), max(1, int(rate * plan.open_seconds)))
    drawn = random.Random(_SEED)
    due, at = [], 0.0
    for _ in range(count):
        at += drawn.expovariate(rate)
        due.append(at)
    latencies = ours.latencies(Arrivals(texts[:count], due, _OPEN_BATCH))
    fifth = max(1, count // 5)
    first, last = (statistics.median(part) for part in (latencies[:fifth], latencies[-fifth:]))
    return Open(
        rate=rate,
        tokens=plan.rate_tokens,
        texts=count,
        latencies=latencies,
        **percentiles(latencies),
        kept_up=last < first + _GROWTH * at,
    )


def _spread(found: Interval) -> Spread:
    return Spread(value=found.value, low=found.low, high=found.high)
