"""Estimators: mteb's score of every unit once, and the right score of every other draw."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, v_measure_score

from anna_export.verify.estimators import (
    AveragePrecision,
    Estimator,
    MeanOf,
    Spearman,
    VMeasure,
    score,
)
from anna_export.verify.resampling import draw, groups_of, groups_of_pairs

RNG = np.random.default_rng(7)
N = 61
WEIGHTS = RNG.integers(0, 4, size=(9, N))
# few different values: ties within and between
GOLD, SIMILARITY = RNG.integers(0, 6, N) / 5, RNG.integers(0, 12, N) / 11
LABELS, SCORES = RNG.integers(0, 2, N), RNG.integers(0, 15, (3, N)) / 14
ONCE = np.ones((9, 1))


def expanded(weights: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(N), weights)


def v_measure() -> tuple[VMeasure, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    levels = []
    for classes, clusters in ((4, 4), (9, 7)):
        gold, assigned = RNG.integers(0, classes, N), RNG.integers(0, clusters, (3, N))
        assigned[:, gold == 1] = 2  # clusters tell something of the classes
        indices = RNG.integers(0, N, size=(3, 200))
        levels.append((gold, indices, np.take_along_axis(assigned, indices, axis=1)))
    return VMeasure.of_levels(levels, N), levels


def test_a_mean_counts_each_value_as_often_as_it_is_drawn() -> None:
    scores = MeanOf(SIMILARITY).resampled(WEIGHTS, ONCE)
    expected = [SIMILARITY[expanded(weights)].mean() for weights in WEIGHTS]
    np.testing.assert_allclose(scores, expected, rtol=1e-13)


def test_spearman_is_scipys_of_the_expanded_sample_ties_and_all() -> None:
    scores = Spearman(GOLD, SIMILARITY).resampled(WEIGHTS, ONCE)
    drawn = [expanded(weights) for weights in WEIGHTS]
    expected = [spearmanr(GOLD[rows], SIMILARITY[rows]).statistic for rows in drawn]
    np.testing.assert_allclose(scores, expected, rtol=1e-11)


def test_average_precision_is_scikit_learns_best_ties_and_all() -> None:
    scores = AveragePrecision(LABELS, SCORES).resampled(WEIGHTS, ONCE)
    drawn = [expanded(weights) for weights in WEIGHTS]
    expected = [
        max(average_precision_score(LABELS[rows], similarity[rows]) for similarity in SCORES)
        for rows in drawn
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_v_measure_is_scikit_learns_over_levels_and_draws() -> None:
    estimator, levels = v_measure()
    expected = np.mean(
        [
            v_measure_score(gold[drawn], clusters)
            for gold, indices, assigned in levels
            for drawn, clusters in zip(indices, assigned, strict=True)
        ]
    )
    assert score(estimator) == pytest.approx(expected, rel=1e-12)


def test_v_measure_counts_texts_and_draws_as_often_as_they_are_drawn() -> None:
    estimator, levels = v_measure()
    draws = RNG.integers(0, 3, size=(9, 6))
    scores = estimator.resampled(WEIGHTS, draws)
    for weights, times, value in zip(WEIGHTS, draws, scores, strict=True):
        measures = []
        for gold, indices, assigned in levels:
            for drawn, clusters in zip(indices, assigned, strict=True):
                rows = np.repeat(np.arange(len(drawn)), weights[drawn])
                measures.append(v_measure_score(gold[drawn][rows], clusters[rows]))
        assert value == pytest.approx(np.average(measures, weights=times), rel=1e-10)


@pytest.mark.parametrize(
    "estimator",
    [MeanOf(SIMILARITY), Spearman(GOLD, SIMILARITY), AveragePrecision(LABELS, SCORES)],
    ids=lambda estimator: type(estimator).__name__,
)
def test_drawing_all_twice_changes_nothing(estimator: Estimator) -> None:
    twice = estimator.resampled(np.full((1, N), 2), np.ones((1, 1)))
    # ranks are not quite twice as far apart, but as far in proportion
    assert twice[0] == pytest.approx(score(estimator), rel=1e-12)


def test_units_of_one_text_are_drawn_together() -> None:
    groups = groups_of(["a", "b", "a", "c", "b", "a"])
    assert groups.tolist() == [0, 1, 0, 2, 1, 0]
    for weights, _ in draw(groups, 1, 50, np.random.default_rng(0)):
        assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 0] == weights[:, 5]).all()
        assert (weights[:, 1] == weights[:, 4]).all()
        # as many groups as there are
        assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
        assert len(np.unique(weights, axis=0)) > 5


def test_pairs_that_share_a_text_are_of_one_group() -> None:
    left = ["a", "c", "b", "e", *(f"l{n}" for n in range(40))]
    right = ["b", "d", "f", "g", *(f"r{n}" for n in range(40))]
    groups = groups_of_pairs(left, right)
    assert groups[0] == groups[2] and len(set(groups.tolist())) == 43


def test_a_chain_of_pairs_is_cut_at_its_rarer_texts() -> None:
    # one text in twenty pairs, whose other texts are in two pairs each: all are connected
    left = ["hub"] * 20 + [f"t{n}" for n in range(20)]
    right = [f"t{n}" for n in range(20)] + [f"u{n}" for n in range(20)]
    groups = groups_of_pairs(left, right)
    assert len(set(groups[:20].tolist())) == 1 and len(set(groups.tolist())) == 21


def test_the_same_seed_draws_the_same_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.arange(50)
    parts = [part for part in draw(groups, 3, 40, np.random.default_rng(5))]
    assert sum(len(weights) for weights, _ in parts) == 40
    again = [part for part in draw(groups, 3, 40, np.random.default_rng(5))]
    assert all((first[0] == second[0]).all() for first, second in zip(parts, again, strict=True))
