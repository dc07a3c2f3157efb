"""Statistics of a linear input: the largest value of either sign, the median, mean squares."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anna_export.calibrate import stats
from anna_export.calibrate.stats import collect_stats
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


@FAST
@given(seed=SEEDS, rows=ROWS)
def test_statistics_are_those_of_the_values(seed: int, rows: int) -> None:
    x = draw(seed, rows)
    measured = collect_stats(x)
    assert measured.amax == float(x.abs().max())
    assert measured.median == float(x.abs().median())
    assert measured.mean_square is not None
    torch.testing.assert_close(measured.mean_square, x.square().mean(dim=0))
    assert 0 < measured.clip_amax <= measured.amax


@FAST
@given(seed=SEEDS, rows=ROWS)
def test_range_goes_up_to_the_largest_value_of_either_sign(seed: int, rows: int) -> None:
    x = draw(seed, rows)
    x[-1, -1] = -x.abs().max() - 1
    measured = collect_stats(x)
    assert measured.clip_amax == measured.amax == -float(x[-1, -1])


# -- many values --


def test_largest_value_is_found_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "_SAMPLED_VALUES", 60)
    x = draw(6, 97)
    for row in (1, 50, 96):
        x[row, 0] = x.abs().max() + 1
        assert collect_stats(x).amax == float(x[row, 0])


def test_median_of_many_values_is_that_of_rows_from_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stats, "_SAMPLED_VALUES", 230)
    rows = torch.arange(1.0, 101)[:, None].expand(100, 23)
    # of the first rows alone it would be about 5
    assert collect_stats(rows).median == pytest.approx(50, abs=10)


def test_input_of_zeros_has_a_range_that_rounds_it_to_zeros() -> None:
    x = torch.zeros(3, 7)
    measured = collect_stats(x)
    assert (measured.amax, measured.median, measured.clip_amax) == (0, 0, 0)
    assert torch.equal(FP8.fake_quantize_input(x, measured), x)
