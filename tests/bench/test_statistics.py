"""What times say: intervals that hold, and no difference where there is none."""

import random
import statistics

import pytest

from anna_export.bench.statistics import compare, interval, percentiles

RUNS, ROUNDS = 400, 5


def seconds(drawn: random.Random, true: float, drift: float, noise: float) -> list[float]:
    """Simulate a run's rounds on a machine that drifts from run to run, and is noisy within one."""
    speed = drawn.gauss(0, drift)
    return [true * 2.718281828 ** (speed + drawn.gauss(0, noise)) for _ in range(ROUNDS)]


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_two_runs_of_the_same_agree_within_their_spread(noise: float) -> None:
    drawn = random.Random(0)
    agree = 0
    for _ in range(RUNS):
        first, second = (interval(seconds(drawn, 1.0, noise / 2, noise)) for _ in range(2))
        agree += first.overlaps(second)
    assert agree / RUNS > 0.97


@pytest.mark.parametrize("noise", [0.001, 0.02, 0.1, 0.3])
def test_a_thing_against_itself_shows_no_difference(noise: float) -> None:
    drawn = random.Random(0)
    verdicts = [
        compare(seconds(drawn, 1.0, 0, noise), seconds(drawn, 1.0, 0, noise)).verdict
        for _ in range(RUNS)
    ]
    assert verdicts.count("no difference") / RUNS > 0.985


def test_a_tenth_is_seen_where_noise_allows_it() -> None:
    drawn = random.Random(0)
    verdicts = [
        compare(seconds(drawn, 1.0, 0.1, 0.01), seconds(drawn, 1.0, 0, 0.01)).verdict
        for _ in range(RUNS)
    ]
    assert verdicts.count("no difference") < RUNS  # drift of one alone is a difference
    clear = [
        compare(run, [1.1 * value * drawn.uniform(0.99, 1.01) for value in run]).verdict
        for run in (seconds(drawn, 1.0, 0.1, 0.05) for _ in range(RUNS))
    ]
    assert clear.count("faster") / RUNS > 0.99
    slower = [
        compare([1.1 * value for value in run], run).verdict
        for run in (seconds(drawn, 1.0, 0.1, 0.05) for _ in range(20))
    ]
    assert set(slower) == {"slower"}


def test_interval_is_about_its_rounds_mean() -> None:
    mean = interval([1.0, 2.0, 4.0])
    assert mean.value == pytest.approx(2.0)
    assert mean.low < 1 < 4 < mean.high
    with pytest.raises(statistics.StatisticsError):
        interval([])


def test_percentiles_are_milliseconds() -> None:
    values = percentiles([0.001 * value for value in range(1, 102)])
    assert values == pytest.approx({"p50_ms": 51, "p90_ms": 91, "p99_ms": 100})
