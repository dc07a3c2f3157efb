"""Is a candidate as good as the reference? A paired bootstrap against a margin.

Both models, and the reference run again, are scored on the same resamples: groups of units that
share a text are drawn with replacement. The interval of the difference is the 95 % between the
replicates' percentiles, stretched for few groups as Student's t is; benchmarks/statistics.py
measures how often such an interval holds the truth.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993; Holm 1979.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from scipy import stats

from anna_export.errors import InputError
from anna_export.verify.difference import Difference, Verdict
from anna_export.verify.estimators import MeanOf, Sample, score
from anna_export.verify.resampling import draw

REPLICATES: Final = 2000
# What a score may lose: a share of it, and at least so much.
MARGIN_SHARE: Final = 0.005
MARGIN: Final = 0.002
# Of fewer groups than these no interval is trusted.
FEWEST_GROUPS: Final = 20
# Of fewer changed groups than these a bootstrap of a mean is too sure.
FEWEST_CHANGED: Final = 30
_LEVEL: Final = 0.95
_ALPHA: Final = 0.05


def margin_of(reference: float, margin: float | None = None) -> float:
    """Return what a score may lose, in its own unit."""
    return max(MARGIN_SHARE * reference, MARGIN) if margin is None else margin


def compare_scores(
    name: str,
    reference: Sequence[Sample],
    candidate: Sequence[Sample],
    again: Sequence[Sample],
    *,
    margin: float | None = None,
    alike: bool = False,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> tuple[Difference, np.ndarray]:
    """Compare two models' scores on a task, unit by unit.

    Args:
        name: The task's, which the resamples depend on.
        reference: The reference's samples, one a subset; the score is their mean.
        candidate: The candidate's, of the same units.
        again: The reference's of another run, for the noise floor.
        margin: What may be lost; None: as `margin_of` says.
        alike: Whether it is known that the candidate's vectors are the reference's but for
            rounding. If not, that few groups changed may be luck, and widens the interval.
        seed: Of the resamples; the same seed, the same numbers.
        replicates: B.

    Returns:
        The difference, and its (B,) replicates, stretched.

    Raises:
        InputError: If a score is not defined, as where all gold scores are equal.
    """
    models = (reference, candidate, again)
    scores = np.array([[score(one.estimator) for one in told] for told in models])
    if not np.isfinite(scores).all():
        raise InputError(
            f"expected a score of {name} for every model, found one that is not defined; its "
            "labels or a model's similarities are all equal: leave it out"
        )
    first, second, third = scores.mean(axis=1).tolist()
    own = seed, zlib.crc32(name.encode())  # tasks are drawn independently of one another
    drawn = np.mean(
        [
            _replicates(told, np.random.default_rng([*own, place]), replicates, alike=alike)
            for place, told in enumerate(zip(*models, strict=True))
        ],
        axis=0,
    )
    groups = [int(one.groups.max()) + 1 for one in reference]
    freedom = min(
        one.estimator.freedom(count) for one, count in zip(reference, groups, strict=True)
    )
    found, noise = (
        _stretched(drawn[place] - drawn[0], difference, freedom)
        for place, difference in ((1, second - first), (2, third - first))
    )
    low, high = _interval(found)
    noise_floor = float(np.abs(_interval(noise)).max())
    allowed = margin_of(first, margin)
    worse = (found > -max(allowed, noise_floor)).sum()
    return (
        Difference(
            reference=first,
            candidate=second,
            difference=second - first,
            low=low,
            high=high,
            margin=allowed,
            noise_floor=noise_floor,
            units=sum(one.estimator.units for one in reference),
            groups=min(groups),
            p_inferior=float((1 + worse) / (1 + replicates)),
        ),
        found,
    )


def judge(differences: Mapping[str, Difference]) -> dict[str, Verdict]:
    """Judge each task: fail if it is worse than the margin, corrected for how many there are.

    It passes if the whole interval lies above minus the margin. So few groups that no interval is
    trusted are inconclusive.
    """
    failed = _holm({name: one.p_inferior for name, one in differences.items()})
    return {name: _verdict(one, failed=name in failed) for name, one in differences.items()}


def over_all(
    verdicts: Mapping[str, Verdict],
    differences: Mapping[str, Difference],
    replicates: Mapping[str, np.ndarray],
    margin: float | None = None,
) -> tuple[Difference, Verdict]:
    """Judge the mean over tasks, which are independent of one another.

    Returns:
        Its difference, and the verdict over all: fail if a task fails, pass if none does and the
        mean is not inferior, else inconclusive.
    """
    told = list(differences.values())
    found = np.mean([replicates[name] for name in differences], axis=0)
    low, high = _interval(found)
    reference, candidate = (
        float(np.mean([getattr(one, name) for one in told])) for name in ("reference", "candidate")
    )
    # independent: their squares add up
    noise_floor = math.sqrt(sum(one.noise_floor**2 for one in told)) / len(told)
    allowed = margin_of(reference, margin)
    mean = Difference(
        reference=reference,
        candidate=candidate,
        difference=candidate - reference,
        low=low,
        high=high,
        margin=allowed,
        noise_floor=noise_floor,
        units=sum(one.units for one in told),
        # tasks of too few are no ground to pass on
        groups=sum(one.groups for one in told if one.groups >= FEWEST_GROUPS),
        p_inferior=float((1 + (found > -max(allowed, noise_floor)).sum()) / (1 + len(found))),
    )
    if Verdict.FAIL in verdicts.values():
        return mean, Verdict.FAIL
    return mean, _verdict(mean, failed=False)


def _verdict(found: Difference, *, failed: bool) -> Verdict:
    if found.groups < FEWEST_GROUPS:
        return Verdict.INCONCLUSIVE
    if failed:
        return Verdict.FAIL
    return Verdict.PASS if found.low > -found.margin else Verdict.INCONCLUSIVE


def _replicates(
    told: tuple[Sample, ...], rng: np.random.Generator, replicates: int, *, alike: bool
) -> np.ndarray:
    """(3, B) scores of reference, candidate and reference again on the same resamples."""
    parts = [
        np.stack([one.estimator.resampled(weights, draws) for one in told])
        for weights, draws in draw(told[0].groups, told[0].estimator.draws, replicates, rng)
    ]
    found = np.concatenate(parts, axis=1)
    # a resample of one class, or of one gold score, has no score
    defined = np.isfinite(found).all(axis=0)
    if not defined.any():
        return np.full_like(found, np.nan)
    found = np.where(defined, found, found[:, defined].mean(axis=1, keepdims=True))
    rare = None if alike else _rare(told[0], told[1], rng, replicates)
    if rare is not None:
        found[1] = found[0] + rare
    return found


def _rare(
    reference: Sample, other: Sample, rng: np.random.Generator, replicates: int
) -> np.ndarray | None:
    """Return (B,) differences of means of which few groups make any; None where many do.

    A bootstrap of a few changed groups knows nothing of those that chance kept out of the sample.
    Here, the number of groups that lose, and of those that gain, has a gamma distribution, as the
    rate of a Poisson count has; how much they do is a Dirichlet-weighted mean of what was seen and,
    the fewer were seen the more, of what was seen the other way and of what units differ by.
    """
    if not isinstance(reference.estimator, MeanOf) or not isinstance(other.estimator, MeanOf):
        return None
    change = np.bincount(
        reference.groups, weights=other.estimator.values - reference.estimator.values
    )
    changed = change[change != 0]
    if len(changed) >= FEWEST_CHANGED:
        return None
    sizes = np.append(np.abs(changed), _apart(reference.estimator.values))
    total = np.zeros(replicates)
    for sign in (-1, 1):
        own = sign * changed > 0
        count = int(own.sum())
        # what changed the other way tells the less, the more was seen that changed this way
        shares = np.append(np.where(own, 1, 1 / (1 + count)), 1 / (1 + len(changed)))
        mean = rng.dirichlet(shares, replicates) @ sizes
        total += sign * rng.gamma(count + 1, size=replicates) * mean
    return total / len(reference.groups)


def _apart(values: np.ndarray) -> float:
    """Return by how much values differ where they do; where none does, how large they are."""
    _, counts = np.unique(values, return_counts=True)
    pairs = (len(values) ** 2 - (counts**2).sum()) / 2
    if not pairs:
        return float(np.abs(values).max())
    places = 2 * np.arange(len(values)) - len(values) + 1
    return float((places * np.sort(values)).sum() / pairs)


def _stretched(replicates: np.ndarray, difference: float, freedom: float) -> np.ndarray:
    """Move replicates away from the difference, as few groups make it less sure than they show."""
    freedom = max(freedom, 1)
    factor = stats.t.ppf((1 + _LEVEL) / 2, freedom) / stats.norm.ppf((1 + _LEVEL) / 2)
    return difference + factor * math.sqrt(1 + 1 / freedom) * (replicates - difference)


def _interval(replicates: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(replicates, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _holm(p_values: Mapping[str, float]) -> set[str]:
    """Return whose hypothesis is rejected at a family-wise 5 %."""
    rejected: set[str] = set()
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        if p_values[name] > _ALPHA / (len(p_values) - place):
            break
        rejected.add(name)
    return rejected
