"""Batches: token ids padded on the right, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anna_export.errors import ShapeError
from anna_export.text.batch import TokenBatch
from anna_export.text.framing import TokenFraming
from anna_export.text.tokeniser import Tokeniser

FAST = settings(max_examples=60, derandomize=True, deadline=None)
ONE_LINE = r"\Aexpected .*\Z"


@pytest.fixture(scope="module")
def tokeniser(base: Path) -> Tokeniser:
    return Tokeniser.open(base, TokenFraming(bos_id=1, eos_id=2, pad_id=0, max_tokens=21))


@FAST
@given(lengths=st.lists(st.integers(1, 33), min_size=1, max_size=9))
def test_batch_is_its_rows_then_padding(tokeniser: Tokeniser, lengths: list[int]) -> None:
    rows = [list(range(3, 3 + length)) for length in lengths]
    batch = TokenBatch.of_rows(rows, tokeniser.framing.pad_id)
    assert batch.ids.shape == (len(lengths), max(lengths)) and batch.ids.dtype == np.int64
    for row, ids, mask in zip(rows, batch.ids, batch.mask, strict=True):
        assert ids[: len(row)].tolist() == row
        assert set(ids[len(row) :]) <= {tokeniser.framing.pad_id}
        assert mask.tolist() == [1] * len(row) + [0] * (max(lengths) - len(row))


@FAST
@given(lengths=st.lists(st.integers(1, 33), min_size=1, max_size=9))
def test_batch_is_rebuilt_from_its_mask(tokeniser: Tokeniser, lengths: list[int]) -> None:
    batch = TokenBatch.of_rows([[7] * length for length in lengths], tokeniser.framing.pad_id)
    again = TokenBatch.from_mask(batch.ids.astype(np.int32), batch.mask.astype(bool))
    assert again.lengths.tolist() == lengths
    assert again.ids.dtype == np.int64 and (again.ids == batch.ids).all()


@pytest.mark.parametrize(
    "row",
    [[0, 0, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]],
    ids=["left", "left by one", "gap", "late gap", "empty"],
)
def test_mask_that_is_not_ones_then_zeros_is_refused_by_row(row: list[int]) -> None:
    ids = np.full((3, 4), 5, dtype=np.int64)
    with pytest.raises(ShapeError, match=r"\A.*row 2.*pad on the right.*\Z"):
        TokenBatch.from_mask(ids, np.array([[1, 1, 1, 1], [1, 1, 0, 0], row]))


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        (np.ones((2, 3), np.int64), np.ones((2, 4), np.int64)),
        (np.ones((2, 3), np.int64), np.ones((3, 2), np.int64)),
        (np.ones(3, np.int64), np.ones(3, np.int64)),
        (np.ones((2, 3), np.float32), np.ones((2, 3), np.int64)),
        (np.full((2, 3), "a"), np.ones((2, 3), np.int64)),
    ],
    ids=["wider mask", "turned mask", "one axis", "float ids", "text ids"],
)
def test_ids_and_mask_that_do_not_fit_are_refused(ids: np.ndarray, mask: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=ONE_LINE):
        TokenBatch.from_mask(ids, mask)


@pytest.mark.parametrize(
    ("ids", "lengths"),
    [
        (np.ones((2, 3), np.int64), np.array([1, 2, 3])),
        (np.ones((2, 3), np.int64), np.array([[1], [2]])),
        (np.ones((2, 3), np.int64), np.array([0, 3])),
        (np.ones((2, 3), np.int64), np.array([1, 4])),
        (np.ones((2, 3), np.int32), np.array([1, 2])),
        (np.ones((2, 3), np.int64), np.array([1.0, 2.0])),
        (np.ones((2, 3, 1), np.int64), np.array([1, 2])),
    ],
    ids=["count", "axes", "empty row", "too long", "int32 ids", "float lengths", "three axes"],
)
def test_batch_of_arrays_that_do_not_fit_cannot_be_built(
    ids: np.ndarray, lengths: np.ndarray
) -> None:
    with pytest.raises(ShapeError, match=ONE_LINE):
        TokenBatch(ids, lengths)
