"""Verdicts: intervals that hold the truth, passes that are right, and every way to tell no."""

import numpy as np
import pytest

from anna_export.errors import InputError
from anna_export.verify.estimators import MeanOf, Sample, Spearman
from anna_export.verify.parity_report import Difference, Verdict
from anna_export.verify.statistics import compare_scores, judge, margin_of, over_all
from tests.support.simulated import SIMULATIONS, compared, simulate

SIMULATED = 150
# of texts; others 60
COUNTS = {
    "mean, right or wrong": 100,
    "mean, a tenth changed": 100,
    "mean, few lost": 100,
    "V-measure": 80,
}
# of so few simulations: benchmarks/statistics/bootstrap.py has thousands, and 93 to 97 %
LEAST_COVERAGE, MOST_FALSE_PASSES = 0.90, 0.09


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "V-measure" else ())
        for name in SIMULATIONS
    ],
)
def test_interval_holds_the_truth_and_few_pass_that_are_at_the_margin(
    name: str,
) -> None:
    shares = simulate(SIMULATIONS[name], COUNTS.get(name, 60), SIMULATED, replicates=300, seed=3)
    assert shares["coverage"] >= LEAST_COVERAGE and shares["false_passes"] <= MOST_FALSE_PASSES


def test_units_of_one_text_count_once() -> None:
    values = np.random.default_rng(0).normal(size=90)
    reference, candidate = MeanOf(np.zeros(900)), MeanOf(np.repeat(values, 10))
    together = compared((reference, candidate, np.repeat(np.arange(90), 10)), 0.1)
    apart = compared((reference, candidate, np.arange(900)), 0.1)
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(10**0.5, rel=0.15) and together.groups == 90


def test_models_are_compared_in_pairs() -> None:
    # queries differ a hundred times as much as models do
    reference = np.random.default_rng(0).normal(size=200)
    candidate = reference + np.random.default_rng(1).normal(0, 0.01, 200)
    difference = compared((MeanOf(reference), MeanOf(candidate), np.arange(200)), 0.01)
    assert difference.high - difference.low < 0.005


def test_a_clear_loss_fails_and_a_clear_gain_passes() -> None:
    rng = np.random.default_rng(0)
    reference = rng.beta(4, 2, 300)
    for change, verdict in ((-0.1, Verdict.FAIL), (0.1, Verdict.PASS), (0.0, Verdict.PASS)):
        candidate = reference + rng.normal(change, 0.02, 300)
        difference = compared((MeanOf(reference), MeanOf(candidate), np.arange(300)), 0.01)
        assert judge({"task": difference}) == {"task": verdict}


def test_few_texts_are_inconclusive_whatever_they_say() -> None:
    for change in (-0.5, 0.0, 0.5):
        reference = np.linspace(0, 1, 12)
        difference = compared((MeanOf(reference), MeanOf(reference + change), np.arange(12)), 0.01)
        assert judge({"task": difference}) == {"task": Verdict.INCONCLUSIVE}


def test_no_change_in_a_hundred_queries_may_be_luck_unless_vectors_are_alike() -> None:
    samples = [Sample(MeanOf(np.random.default_rng(0).beta(4, 2, 100)), np.arange(100))]
    for alike, verdict in ((False, Verdict.INCONCLUSIVE), (True, Verdict.PASS)):
        difference, _ = compare_scores(
            "made up", samples, samples, samples, margin=0.005, alike=alike
        )
        assert judge({"task": difference}) == {"task": verdict} and difference.difference == 0
    # of ten thousand it is none
    samples = [Sample(MeanOf(np.random.default_rng(0).beta(4, 2, 10_000)), np.arange(10_000))]
    difference, _ = compare_scores("made up", samples, samples, samples, margin=0.005)
    assert judge({"task": difference}) == {"task": Verdict.PASS}


def test_no_loss_in_fifty_texts_does_not_rule_out_one_in_thirty() -> None:
    samples = [Sample(MeanOf((np.arange(50) % 5 < 4) * 1.0), np.arange(50))]
    difference, _ = compare_scores("made up", samples, samples, samples, margin=0.0355)
    # of a rate of 0.0355 a text, no loss in fifty is seen once in six times
    assert difference.low < -0.0355 and judge({"task": difference})["task"] is Verdict.INCONCLUSIVE
    assert difference.low > -0.15


def test_gains_and_losses_are_as_large_as_those_that_were_seen() -> None:
    values = np.linspace(0.2, 1, 200)
    change = np.zeros(200)
    change[:12], change[12:20] = -0.02, 0.1
    samples, other = ([Sample(MeanOf(v), np.arange(200))] for v in (values, values + change))
    difference, _ = compare_scores("made up", samples, other, samples)
    # twelve small losses and eight large gains, not twenty changes of one size
    assert -0.001 < difference.low and difference.high > 0.005
    back, _ = compare_scores("made up", other, samples, other)
    assert back.low < -0.005 and back.high < 0.001


def test_a_wide_interval_around_no_difference_is_inconclusive() -> None:
    rng = np.random.default_rng(0)
    reference = rng.beta(4, 2, 40)
    difference = compared(
        (MeanOf(reference), MeanOf(reference + rng.normal(0, 0.2, 40)), np.arange(40)), 0.01
    )
    assert judge({"task": difference}) == {"task": Verdict.INCONCLUSIVE}


def test_the_noise_floor_is_what_the_reference_differs_from_itself() -> None:
    rng = np.random.default_rng(0)
    reference = rng.beta(4, 2, 400)
    again = reference + rng.normal(0.0, 0.05, 400)
    groups = np.arange(400)
    difference, _ = compare_scores(
        "made up",
        *([Sample(MeanOf(values), groups)] for values in (reference, reference - 0.004, again)),
        margin=0.002,
    )
    assert 0.004 < difference.noise_floor < 0.015
    # worse than the margin, and no worse than noise
    assert judge({"task": difference}) == {"task": Verdict.INCONCLUSIVE}


def test_of_many_tasks_one_fails_only_beyond_what_chance_brings() -> None:
    def with_p_value(p_inferior: float) -> Difference:
        return Difference(0.5, 0.5, -0.01, -0.02, 0.0, 0.005, 0.0, 500, 500, p_inferior)

    alone = judge({"a": with_p_value(0.03)})
    assert alone == {"a": Verdict.FAIL}
    of_ten = judge(
        {"a": with_p_value(0.03), **{f"t{index}": with_p_value(0.5) for index in range(9)}}
    )
    assert set(of_ten.values()) == {Verdict.INCONCLUSIVE}
    # Holm: the second is held against one test fewer
    of_three = judge({"a": with_p_value(0.001), "b": with_p_value(0.02), "c": with_p_value(0.5)})
    assert of_three == {"a": Verdict.FAIL, "b": Verdict.FAIL, "c": Verdict.INCONCLUSIVE}


def test_over_all_fails_by_one_task_and_passes_by_the_mean() -> None:
    rng = np.random.default_rng(0)
    reference = rng.beta(4, 2, 400)
    changes = {"good": 0.0, "wide": 0.0, "bad": -0.1}
    differences, replicates = {}, {}
    for name, change in changes.items():
        spread = 0.2 if name == "wide" else 0.002
        samples = [Sample(MeanOf(reference), np.arange(400))]
        candidate = [Sample(MeanOf(reference + rng.normal(change, spread, 400)), np.arange(400))]
        differences[name], replicates[name] = compare_scores(name, samples, candidate, samples)
    verdicts = judge(differences)
    assert verdicts == {
        "good": Verdict.PASS,
        "wide": Verdict.INCONCLUSIVE,
        "bad": Verdict.FAIL,
    }
    assert over_all(verdicts, differences, replicates)[1] is Verdict.FAIL
    first = {"good": differences["good"]}
    assert over_all({"good": Verdict.PASS}, first, replicates)[1] is Verdict.PASS
    second = {name: differences[name] for name in ("good", "wide")}
    of_two = {name: verdicts[name] for name in second}
    assert over_all(of_two, second, replicates, margin=0.002)[1] is Verdict.INCONCLUSIVE
    overall, verdict = over_all(of_two, second, replicates, margin=0.05)
    assert verdict is Verdict.PASS and overall.margin == 0.05
    # twice as many tasks, the same spread in one: half of it in the mean
    wide, both = differences["wide"], overall
    assert (both.high - both.low) == pytest.approx((wide.high - wide.low) / 2, rel=0.1)


@pytest.mark.parametrize("changed", [400, 5])
def test_tasks_are_drawn_independently_of_one_another(changed: int) -> None:
    rng = np.random.default_rng(0)
    reference = rng.beta(4, 2, 400)
    other = reference + np.where(np.arange(400) < changed, rng.normal(0, 0.1, 400), 0)
    samples, candidate = ([Sample(MeanOf(v), np.arange(400))] for v in (reference, other))
    first, second = (
        compare_scores(name, samples, candidate, samples)[1] for name in ("one", "two")
    )
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1


def test_the_margin_is_half_a_percent_and_at_least_two_thousandths() -> None:
    assert margin_of(0.8) == pytest.approx(0.004)
    assert margin_of(0.1) == 0.002 and margin_of(0.1, 0.03) == 0.03


def test_the_same_seed_gives_the_same_numbers() -> None:
    models = SIMULATIONS["Spearman"](np.random.default_rng(0), 50)
    assert compared(models, 0.01, seed=4) == compared(models, 0.01, seed=4)
    assert compared(models, 0.01, seed=4) != compared(models, 0.01, seed=5)


def test_a_score_that_is_not_defined_is_refused() -> None:
    gold = np.ones(30)
    models = (Spearman(gold, np.arange(30.0)), Spearman(gold, np.arange(30.0)), np.arange(30))
    with pytest.raises(InputError, match=r"expected a score of simulated .* leave it out"):
        compared(models, 0.01)
