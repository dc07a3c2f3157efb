"""Cosines and lengths: of constructed vectors, and of those that are no vectors."""

import numpy as np
import pytest

from anna_export.cosine import cosines, length_errors


def test_cosines_are_of_directions_whatever_the_lengths() -> None:
    left = np.array([[1, 0], [2, 0], [3, 3], [1, 0]], dtype=np.float32)
    right = np.array([[5, 0], [0, 1], [1, 0], [-1, 0]], dtype=np.float32)
    # float32 holds these values, and their products, without rounding
    np.testing.assert_allclose(cosines(left, right), [1, 0, 0.5**0.5, -1], atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_a_row_that_is_no_direction_counts_as_the_opposite_one(value: float) -> None:
    good, bad = np.eye(3, dtype=np.float32)[:2], np.full((2, 3), value, dtype=np.float32)
    assert cosines(good, bad).tolist() == [-1, -1] == cosines(bad, good).tolist()


def test_sums_are_in_float64() -> None:
    # 4096 equal values: a running sum in float32 or float16 drifts
    vectors = np.full((1, 4096), 0.015625, dtype=np.float16)
    assert cosines(vectors, vectors)[0] == pytest.approx(1, abs=1e-12)
    assert length_errors(vectors)[0] == pytest.approx(0, abs=1e-12)


def test_length_errors_are_distances_from_one_and_nan_stays() -> None:
    vectors = np.array([[0.6, 0.8], [1.2, 1.6], [0, 0], [np.nan, 1]])
    errors = length_errors(vectors)
    np.testing.assert_allclose(errors[:3], [0, 1, 1], atol=1e-12)
    assert np.isnan(errors[3])
