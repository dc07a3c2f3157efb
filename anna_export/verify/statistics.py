"""Is a candidate as good as the reference? A paired bootstrap against a margin.

Both models, and the reference run again, are scored on the same resamples: groups of units that
share a text are drawn with replacement (a cluster bootstrap). The interval of the difference is the
95 % percentile interval, widened for few groups as Student's t is wider than the normal
distribution. benchmarks/statistics/bootstrap.py measures how often it holds the true difference.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993; Holm 1979.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from scipy import stats

from anna_export.errors import InputError
from anna_export.verify.estimators import MeanOf, Sample, score
from anna_export.verify.parity_report import Difference, Verdict
from anna_export.verify.resampling import draw

REPLICATES: Final = 2000
# The default margin: a share of the reference's score, and at least MARGIN.
MARGIN_SHARE: Final = 0.005
MARGIN: Final = 0.002
# No interval of fewer groups than these is trusted.
FEWEST_GROUPS: Final = 20
# With fewer changed groups than these the bootstrap interval of a mean is too narrow.
FEWEST_CHANGED: Final = 30
_LEVEL: Final = 0.95
_ALPHA: Final = 0.05


def margin_of(reference: float, margin: float | None = None) -> float:
    """Return by how much a score may be lower than the reference's, in its own unit."""
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
        margin: By how much the score may be lower; None: as `margin_of` says.
        alike: Whether the candidate's vectors are known to be the reference's but for rounding. If
            not, that few groups changed may be luck, and widens the interval.
        seed: Of the resamples; the same seed, the same numbers.
        replicates: B.

    Returns:
        The difference, and its (B,) replicates, widened.

    Raises:
        InputError: If a score is not defined, as where all gold scores are equal.
    """
    models = (reference, candidate, again)
    scores = np.array([[score(sample.estimator) for sample in model] for model in models])
    if not np.isfinite(scores).all():
        raise InputError(
            f"expected a score of {name} for every model, found one that is not defined; its "
            "labels or a model's similarities are all equal: leave it out"
        )
    seeds = seed, zlib.crc32(name.encode())  # tasks are drawn independently of one another
    resampled = np.mean(
        [
            _resample(subset, np.random.default_rng([*seeds, index]), replicates, alike=alike)
            for index, subset in enumerate(zip(*models, strict=True))
        ],
        axis=0,
    )  # (3, B)
    groups = [int(sample.groups.max()) + 1 for sample in reference]
    freedom = min(
        sample.estimator.freedom(count) for sample, count in zip(reference, groups, strict=True)
    )
    first, second, third = scores.mean(axis=1).tolist()
    differences = _t_inflated(resampled[1] - resampled[0], second - first, freedom)
    noise = _t_inflated(resampled[2] - resampled[0], third - first, freedom)
    difference = _difference(
        first,
        second,
        differences,
        margin=margin_of(first, margin),
        noise_floor=float(np.abs(_interval(noise)).max()),
        units=sum(sample.estimator.units for sample in reference),
        groups=min(groups),
    )
    return difference, differences


def judge(differences: Mapping[str, Difference]) -> dict[str, Verdict]:
    """Judge each task: fail if it is worse than the margin, corrected for how many there are.

    It passes if the whole interval lies above minus the margin. A task of so few groups that no
    interval is trusted is inconclusive.
    """
    failed = _holm({name: difference.p_inferior for name, difference in differences.items()})
    return {
        name: _verdict(difference, failed=name in failed)
        for name, difference in differences.items()
    }


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
    tasks = list(differences.values())
    reference = float(np.mean([task.reference for task in tasks]))
    mean = _difference(
        reference,
        float(np.mean([task.candidate for task in tasks])),
        np.mean([replicates[name] for name in differences], axis=0),
        margin=margin_of(reference, margin),
        # independent: their squares add up
        noise_floor=math.sqrt(sum(task.noise_floor**2 for task in tasks)) / len(tasks),
        units=sum(task.units for task in tasks),
        # a mean over tasks of too few groups cannot pass either
        groups=sum(task.groups for task in tasks if task.groups >= FEWEST_GROUPS),
    )
    if Verdict.FAIL in verdicts.values():
        return mean, Verdict.FAIL
    return mean, _verdict(mean, failed=False)


def _difference(
    reference: float,
    candidate: float,
    replicates: np.ndarray,
    *,
    margin: float,
    noise_floor: float,
    units: int,
    groups: int,
) -> Difference:
    """Summarise (B,) replicates of a difference: its interval, and a p-value of inferiority."""
    low, high = _interval(replicates)
    not_inferior = (replicates > -max(margin, noise_floor)).sum()
    return Difference(
        reference=reference,
        candidate=candidate,
        difference=candidate - reference,
        low=low,
        high=high,
        margin=margin,
        noise_floor=noise_floor,
        units=units,
        groups=groups,
        p_inferior=float((1 + not_inferior) / (1 + len(replicates))),
    )


def _verdict(difference: Difference, *, failed: bool) -> Verdict:
    if difference.groups < FEWEST_GROUPS:
        return Verdict.INCONCLUSIVE
    if failed:
        return Verdict.FAIL
    return Verdict.PASS if difference.low > -difference.margin else Verdict.INCONCLUSIVE


def _resample(
    models: tuple[Sample, ...], rng: np.random.Generator, replicates: int, *, alike: bool
) -> np.ndarray:
    """(3, B) scores of reference, candidate and reference again on the same resamples."""
    reference, candidate, _ = models
    parts = [
        np.stack([sample.estimator.resampled(weights, draws) for sample in models])
        for weights, draws in draw(reference.groups, reference.estimator.draws, replicates, rng)
    ]
    scores = np.concatenate(parts, axis=1)
    # a resample of one class, or of one gold score, has no score
    defined = np.isfinite(scores).all(axis=0)
    if not defined.any():
        return np.full_like(scores, np.nan)
    scores = np.where(defined, scores, scores[:, defined].mean(axis=1, keepdims=True))
    differences = None if alike else _small_count_model(reference, candidate, rng, replicates)
    if differences is not None:
        scores[1] = scores[0] + differences
    return scores


def _small_count_model(
    reference: Sample, candidate: Sample, rng: np.random.Generator, replicates: int
) -> np.ndarray | None:
    """Draw (B,) differences of means from a gamma-Dirichlet model; None where many groups changed.

    Resampling a few changed groups cannot draw the rare changes that this sample happens to miss.
    So the number of groups that lose, and of those that gain, is drawn from a gamma distribution:
    the posterior of a Poisson rate under a flat prior. The mean size of a change is a
    Dirichlet-weighted mean of the observed sizes, with less weight on those of the other sign and
    on one more size: the Gini mean difference between units.
    """
    if not isinstance(reference.estimator, MeanOf) or not isinstance(candidate.estimator, MeanOf):
        return None
    change = np.bincount(
        reference.groups, weights=candidate.estimator.values - reference.estimator.values
    )
    changed = change[change != 0]
    if len(changed) >= FEWEST_CHANGED:
        return None
    sizes = np.append(np.abs(changed), _gini_mean_difference(reference.estimator.values))
    total = np.zeros(replicates)
    for sign in (-1, 1):
        same_sign = sign * changed > 0
        count = int(same_sign.sum())
        # the more changes of this sign were observed, the less those of the other sign weigh
        weights = np.append(np.where(same_sign, 1, 1 / (1 + count)), 1 / (1 + len(changed)))
        mean_size = rng.dirichlet(weights, replicates) @ sizes
        total += sign * rng.gamma(count + 1, size=replicates) * mean_size
    return total / len(reference.groups)


def _gini_mean_difference(values: np.ndarray) -> float:
    """Return the mean absolute difference over pairs of unequal values.

    Equal pairs are left out, unlike in Gini's own; where all are equal, the largest |value|.
    """
    _, counts = np.unique(values, return_counts=True)
    pairs = (len(values) ** 2 - (counts**2).sum()) / 2
    if not pairs:
        return float(np.abs(values).max())
    # a value's rank says how often it is the larger of a pair, less how often the smaller
    ranks = 2 * np.arange(len(values)) - len(values) + 1
    return float((ranks * np.sort(values)).sum() / pairs)


def _t_inflated(replicates: np.ndarray, difference: float, freedom: float) -> np.ndarray:
    """Widen (B,) replicates around a difference, as a t interval is wider than a normal one."""
    freedom = max(freedom, 1)
    factor = stats.t.ppf((1 + _LEVEL) / 2, freedom) / stats.norm.ppf((1 + _LEVEL) / 2)
    return difference + factor * math.sqrt(1 + 1 / freedom) * (replicates - difference)


def _interval(replicates: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval."""
    low, high = np.quantile(replicates, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _holm(p_values: Mapping[str, float]) -> set[str]:
    """Return the names whose hypothesis Holm's procedure rejects, at a family-wise 5 %."""
    rejected: set[str] = set()
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        if p_values[name] > _ALPHA / (len(p_values) - rank):
            break
        rejected.add(name)
    return rejected
