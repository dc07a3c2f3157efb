"""Two models on made-up data, and how often their true difference is told rightly."""

from collections.abc import Callable
from typing import Final

import numpy as np

from anna_export.verify.estimators import (
    AveragePrecision,
    Estimator,
    MeanOf,
    Sample,
    Spearman,
    VMeasure,
    score,
)
from anna_export.verify.parity_report import Difference, Verdict
from anna_export.verify.statistics import compare_scores, judge

# the reference, the candidate, and which of their units share a text
Models = tuple[Estimator, Estimator, np.ndarray]
# gives models on so many units
Make = Callable[[np.random.Generator, int], Models]


def simulate(
    make: Make, size: int, count: int, replicates: int, seed: int = 20261126
) -> dict[str, float]:
    """Return the shares of `count` simulated data sets, and the true difference.

    That is the mean of four times as many data sets.
    """
    rng = np.random.default_rng(seed)
    truth = float(np.mean([_difference(make(rng, size)) for _ in range(4 * count)]))
    assert truth < 0, "the candidate is worse, so that the margin can be put there"
    covered = passed = failed = 0
    for index in range(count):
        models = make(rng, size)
        at_margin = compared(models, -truth, index, replicates)
        covered += at_margin.low <= truth <= at_margin.high
        passed += judge({"task": at_margin})["task"] is Verdict.PASS
        within = compared(models, -2 * truth, index, replicates)
        failed += judge({"task": within})["task"] is Verdict.FAIL
    return {
        "coverage": covered / count,
        "false_passes": passed / count,
        "false_fails": failed / count,
        "true_difference": truth,
        "data_sets": count,
    }


def compared(models: Models, margin: float, seed: int = 0, replicates: int = 300) -> Difference:
    """Compare two models; the reference runs again to the same values."""
    reference, candidate, groups = models
    references = [Sample(reference, groups)]
    return compare_scores(
        "simulated", references, [Sample(candidate, groups)], references,
        margin=margin, seed=seed, replicates=replicates,
    )[0]  # fmt: skip


def _difference(models: Models) -> float:
    reference, candidate, _ = models
    return score(candidate) - score(reference)


def continuous(rng: np.random.Generator, count: int) -> Models:
    """Return queries whose values all differ a little."""
    reference = rng.beta(4, 2, count)
    candidate = reference + rng.normal(-0.01, 0.05, count)
    return MeanOf(reference), MeanOf(candidate), np.arange(count)


def right_or_wrong(rng: np.random.Generator, count: int) -> Models:
    """Return texts that are classified right or wrong, few of them otherwise."""
    reference, luck = rng.random(count) < 0.8, rng.random(count)
    candidate = np.where(reference, luck > 0.05, luck < 0.1)
    return MeanOf(reference * 1.0), MeanOf(candidate * 1.0), np.arange(count)


def tenth_changed(rng: np.random.Generator, count: int) -> Models:
    """Return queries of which one in ten changes, and may change much."""
    reference = rng.beta(4, 2, count)
    changes = np.where(rng.random(count) < 0.1, rng.normal(-0.05, 0.2, count), 0.0)
    return MeanOf(reference), MeanOf(reference + changes), np.arange(count)


def few_lost(rng: np.random.Generator, count: int) -> Models:
    """Return texts of which one in twenty is classified wrong from now on, and none right."""
    reference = rng.random(count) < 0.7
    candidate = reference & (rng.random(count) > 0.05)
    return MeanOf(reference * 1.0), MeanOf(candidate * 1.0), np.arange(count)


def of_one_text(rng: np.random.Generator, count: int) -> Models:
    """Return units of which three have one text."""
    groups = np.repeat(np.arange(count), 3)
    reference = rng.beta(4, 2, 3 * count)
    changes = rng.normal(-0.01, 0.05, count)[groups] + rng.normal(0, 0.02, 3 * count)
    return MeanOf(reference), MeanOf(reference + changes), groups


def spearman(rng: np.random.Generator, count: int) -> Models:
    """Return pairs with gold scores in steps."""
    gold = np.round(rng.normal(size=count) * 2) / 2
    reference = gold + rng.normal(0, 0.7, count)
    candidate = reference + rng.normal(0, 0.3, count)
    return Spearman(gold, reference), Spearman(gold, candidate), np.arange(count)


def average_precision(rng: np.random.Generator, count: int) -> Models:
    """Return pairs of which three in ten mean the same."""
    labels = (rng.random(count) < 0.3) * 1
    reference = 1.5 * labels + rng.normal(size=count)
    candidate = reference + rng.normal(0, 0.3, count)
    first, second = (AveragePrecision(labels, scores[None]) for scores in (reference, candidate))
    return first, second, np.arange(count)


def v_measure(rng: np.random.Generator, count: int) -> Models:
    """Return texts of five classes, clustered ten times, each time a little otherwise."""
    classes = 5
    gold = rng.integers(0, classes, count)
    reference = np.where(rng.random(count) < 0.75, gold, rng.integers(0, classes, count))
    fresh = np.where(rng.random(count) < 0.6, gold, rng.integers(0, classes, count))
    candidate = np.where(rng.random(count) < 0.85, reference, fresh)
    indices = rng.integers(0, count, (10, 4 * count))

    def clustered(clusters: np.ndarray) -> VMeasure:
        drawn = [
            np.where(rng.random(count) < 0.98, clusters, rng.integers(0, classes, count))[rows]
            for rows in indices
        ]
        return VMeasure.of_levels([(gold, indices, np.stack(drawn))], count)

    return clustered(reference), clustered(candidate), np.arange(count)


SIMULATIONS: Final[dict[str, Make]] = {
    "mean, continuous": continuous,
    "mean, right or wrong": right_or_wrong,
    "mean, a tenth changed": tenth_changed,
    "mean, few lost": few_lost,
    "mean, three of a text": of_one_text,
    "Spearman": spearman,
    "average precision": average_precision,
    "V-measure": v_measure,
}
