"""Ranges: max, percentile and MSE choose what they say, by the format's own rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anna_export.calibrate import ranges
from anna_export.calibrate.ranges import PERCENTILE, see
from anna_export.choices import Ranges
from anna_export.quantise.calibration import Seen
from anna_export.quantise.fp8 import Fp8Static
from anna_export.spec import Precision

FP8 = Fp8Static(Precision.BF16)
FAST = settings(max_examples=40, derandomize=True, deadline=None)
SEEDS = st.integers(0, 10_000)
ROWS = st.integers(1, 37)


def draw(seed: int, rows: int, channels: int = 23) -> torch.Tensor:
    """Draw (rows, channels) values with heavy tails, as activations have."""
    torch.manual_seed(seed)
    return torch.randn(rows, channels) / torch.rand(rows, channels)


def error(x: torch.Tensor, clip: float) -> float:
    rounded = FP8.round_input(x, Seen(amax=clip, median=0.0, clip=clip))
    return float((rounded - x).square().mean())


@FAST
@given(seed=SEEDS, rows=ROWS)
@pytest.mark.parametrize("how", Ranges)
def test_figures_that_are_no_choice_are_those_of_the_values(
    how: Ranges, seed: int, rows: int
) -> None:
    x = draw(seed, rows)
    seen = see(x, how, FP8.round_input)
    assert seen.amax == float(x.abs().max())
    assert seen.median == float(x.abs().median())
    assert seen.mean_square is not None
    torch.testing.assert_close(seen.mean_square, x.square().mean(dim=0))
    assert 0 < seen.clip <= seen.amax


# -- max --


@FAST
@given(seed=SEEDS, rows=ROWS)
def test_max_takes_the_largest_value_of_either_sign(seed: int, rows: int) -> None:
    x = draw(seed, rows)
    x[-1, -1] = -x.abs().max() - 1
    seen = see(x, Ranges.MAX, FP8.round_input)
    assert seen.clip == seen.amax == -float(x[-1, -1])


# -- percentile --


def test_percentile_leaves_one_value_in_ten_thousand_above() -> None:
    torch.manual_seed(0)
    sizes = torch.randperm(200 * 500).float() + 1
    signs = torch.where(torch.rand(len(sizes)) < 0.5, -1.0, 1.0)
    clip = see((sizes * signs).reshape(200, 500), Ranges.PERCENTILE, FP8.round_input).clip
    assert (sizes >= clip).sum() == round(len(sizes) * (100 - PERCENTILE) / 100) == 10


def test_percentile_of_few_values_is_the_largest() -> None:
    x = draw(3, 5)
    seen = see(x, Ranges.PERCENTILE, FP8.round_input)
    assert seen.clip == seen.amax


def test_percentile_is_not_moved_by_one_enormous_value() -> None:
    x = draw(4, 1000, 100)
    before = see(x, Ranges.PERCENTILE, FP8.round_input)
    x[17, 3] = 1e9
    after = see(x, Ranges.PERCENTILE, FP8.round_input)
    assert after.amax == 1e9
    # ten values are above it, and now one more
    assert before.clip <= after.clip <= 1.2 * before.clip


# -- MSE --


@FAST
@given(seed=SEEDS, rows=ROWS)
def test_mse_is_no_worse_than_any_other_range_tried(seed: int, rows: int) -> None:
    x = draw(seed, rows)
    seen = see(x, Ranges.MSE, FP8.round_input)
    steps = [seen.amax * 2 ** (-step / 4) for step in range(24)]
    assert seen.clip in steps
    assert error(x, seen.clip) == min(error(x, clip) for clip in steps)


def test_mse_cuts_off_what_is_rare_where_that_gains_more_for_the_rest() -> None:
    x = torch.full((500, 20), 0.7)
    x[123, 4] = 1.0
    # 0.7 lies beside 448 in this range, and halfway between two codes in that up to 1
    assert see(x, Ranges.MSE, FP8.round_input).clip == pytest.approx(2**-0.5)
    x[::2] = 1.0
    assert see(x, Ranges.MSE, FP8.round_input).clip == 1.0


def test_mse_asks_the_format() -> None:
    def round_in_even_steps(x: torch.Tensor, seen: Seen) -> torch.Tensor:
        step = seen.clip / 7
        return (x / step).round().clamp(-7, 7) * step

    torch.manual_seed(0)
    x = torch.randn(2000, 64)
    x[9, 9] = 20.0
    # E4M3 loses nothing in the middle to a wide range; seven even steps lose all of it
    assert see(x, Ranges.MSE, FP8.round_input).clip == 20.0
    assert see(x, Ranges.MSE, round_in_even_steps).clip < 5.0


# -- many values --


@pytest.mark.parametrize("how", Ranges)
def test_largest_value_is_found_wherever_it_stands(
    how: Ranges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_SAMPLED_VALUES", 60)
    x = draw(6, 97)
    for row in (1, 50, 96):
        x[row, 0] = x.abs().max() + 1
        assert see(x, how, FP8.round_input).amax == float(x[row, 0])


def test_median_of_many_values_is_that_of_rows_from_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranges, "_SAMPLED_VALUES", 230)
    rows = torch.arange(1.0, 101)[:, None].expand(100, 23)
    # of the first rows alone it would be about 5
    assert see(rows, Ranges.MAX, FP8.round_input).median == pytest.approx(50, abs=10)


@pytest.mark.parametrize("how", Ranges)
def test_input_of_zeros_has_a_range_that_rounds_it_to_zeros(how: Ranges) -> None:
    x = torch.zeros(3, 7)
    seen = see(x, how, FP8.round_input)
    assert (seen.amax, seen.median, seen.clip) == (0, 0, 0)
    assert torch.equal(FP8.round_input(x, seen), x)
