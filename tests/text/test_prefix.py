"""Prefixes as values: their arrays fit, and a batch knows its whole ids."""

import numpy as np
import pytest

from anna_export.errors import ShapeError
from anna_export.text.batch import TokenBatch
from anna_export.text.prefix import Prefix


def prefix(count: int = 3) -> Prefix:
    keys = np.arange(2 * 2 * count * 4, dtype=np.float32).reshape(2, 2, count, 4)
    return Prefix(tuple(range(1, count + 1)), keys, -keys)


def test_first_tokens_keep_their_keys_and_values() -> None:
    full, first = prefix(), prefix().first(2)
    assert first.ids == (1, 2) and len(first) == 2
    assert (first.keys == full.keys[:, :, :2]).all()
    assert (first.values == full.values[:, :, :2]).all()
    # ONNX Runtime would copy what is not contiguous, at every run
    assert first.keys.flags.c_contiguous and first.values.flags.c_contiguous


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        (np.zeros((2, 2, 4, 4), np.float32), np.zeros((2, 2, 4, 4), np.float32)),
        (np.zeros((2, 2, 3, 4), np.float32), np.zeros((2, 1, 3, 4), np.float32)),
        (np.zeros((2, 3, 4), np.float32), np.zeros((2, 3, 4), np.float32)),
        (np.zeros((2, 2, 3, 4), np.float16), np.zeros((2, 2, 3, 4), np.float16)),
    ],
    ids=["other length", "unlike", "no heads", "fp16"],
)
def test_arrays_that_do_not_fit_are_refused(keys: np.ndarray, values: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="expected"):
        Prefix((1, 2, 3), keys, values)


def test_whole_batch_has_the_prefix_in_front_of_every_row() -> None:
    batch = TokenBatch(np.array([[7, 8], [9, 0]]), np.array([2, 1]), prefix())
    joined = batch.joined()
    assert joined.ids.tolist() == [[1, 2, 3, 7, 8], [1, 2, 3, 9, 0]]
    assert joined.lengths.tolist() == [5, 4] and joined.prefix is None
    # the mask of a batch is that of what is computed
    assert batch.mask.tolist() == [[1, 1], [1, 0]]


def test_batch_without_a_prefix_is_whole() -> None:
    batch = TokenBatch(np.array([[7]]), np.array([1]))
    assert batch.joined() is batch
