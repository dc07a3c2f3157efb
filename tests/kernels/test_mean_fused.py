"""The mean's Triton version against sums in float64: on a GPU, or in Triton's interpreter.

`test_interpreted.py` starts the second way, in a process of its own, so this file uses no conftest.
"""

from collections.abc import Iterator

import pytest
import torch
from anna_kernels.pooling import DTYPES

pytest.importorskip("triton", reason="the fused version needs triton: Linux on x86_64")
import triton
from anna_kernels.mean import _scaled, fused_mean_pool
from anna_kernels.mean_kernel import MAX_BLOCK, SLICE

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(),
        reason="needs a CUDA device; test_interpreted.py runs it in Triton's interpreter",
    ),
]
NAN = float("nan")
# one token, odd, and slices and blocks of columns that are full, and one more
SHAPES = [
    (1, 1, 8, [(0, 1)]),
    (3, 7, 129, [(0, 1), (2, 7), (6, 7)]),
    (2, 2 * SLICE + 1, MAX_BLOCK + 77, [(0, 2 * SLICE + 1), (3, SLICE + 3)]),
]
Bounds = list[tuple[int, int]]


@pytest.fixture(autouse=True)
def nan_filled_empty() -> Iterator[None]:
    """Memory that nobody wrote reads as NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def poisoned(
    batch: int, seq: int, dim: int, bounds: Bounds, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make states that are NaN but for each row's pooled tokens, and these bounds."""
    random = torch.Generator().manual_seed(dim)
    hidden = torch.full((batch, seq, dim), NAN, dtype=dtype)
    for row, (start, stop) in enumerate(bounds):
        hidden[row, start:stop] = torch.randn(stop - start, dim, generator=random).to(dtype)
    start, stop = torch.tensor(bounds).T
    return hidden.to(DEVICE), start.to(DEVICE), stop.to(DEVICE)


def exact(hidden: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    rows = zip(hidden.double(), bounds, strict=True)
    return torch.stack([row[start:stop].mean(0) for row, (start, stop) in rows]).float()


@pytest.mark.parametrize("index", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "seq", "dim", "bounds"), SHAPES)
def test_mean_is_that_of_the_tokens_from_start_to_stop(
    batch: int, seq: int, dim: int, bounds: Bounds, dtype: torch.dtype, index: torch.dtype
) -> None:
    hidden, start, stop = poisoned(batch, seq, dim, bounds, dtype)
    means = fused_mean_pool(hidden, start.to(index), stop.to(index), longest=seq)
    assert means.dtype == torch.float32
    # at most 129 values about 1 are added in float32
    torch.testing.assert_close(means, exact(hidden, bounds), atol=1e-6, rtol=1e-5)
    vectors = _scaled(means, 1e-12)
    expected = torch.nn.functional.normalize(exact(hidden, bounds), dim=-1)
    torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=1e-5)


def test_packed_rows_and_rows_beside_longer_ones_have_the_same_bits() -> None:
    bounds = [(0, 1), (5, 5 + SLICE + 9), (2, 2 + SLICE)]
    hidden, start, stop = poisoned(3, 2 * SLICE + 1, 129, bounds)
    means = fused_mean_pool(hidden, start, stop, longest=2 * SLICE + 1)
    packed = torch.cat([row[a:b] for row, (a, b) in zip(hidden, bounds, strict=True)])
    lengths = stop - start
    behind = lengths.cumsum(0)
    longest = int(lengths.max())
    of_packed = fused_mean_pool(packed, behind - lengths, behind, longest=longest)
    assert torch.equal(means, of_packed)
    alone = fused_mean_pool(hidden[1:2], start[1:2], stop[1:2], longest=longest)
    assert torch.equal(means[1:2], alone)


@pytest.mark.parametrize("bad", [(-1, 2), (3, 3), (4, 3), (0, 8), (2**40, 2**40 + 1)])
def test_row_out_of_range_is_nan_and_leaves_the_others(bad: tuple[int, int]) -> None:
    hidden, start, stop = poisoned(3, 7, 5, [(0, 2), (1, 3), (6, 7)])
    start[1], stop[1] = bad
    means = fused_mean_pool(hidden, start, stop, longest=7)
    assert means.isfinite().all(1).tolist() == [True, False, True]
    assert _scaled(means, 1e-12).isnan().all(1).tolist() == [False, True, False]


def test_row_longer_than_longest_is_nan() -> None:
    hidden, start, stop = poisoned(1, SLICE + 1, 5, [(0, SLICE + 1)])
    assert fused_mean_pool(hidden, start, stop, longest=SLICE).isnan().all()


def test_sum_past_the_range_of_float16_is_taken_in_float32() -> None:
    hidden = torch.full((1, 9, 5), 6e4, dtype=torch.float16, device=DEVICE)
    start, stop = torch.tensor([0], device=DEVICE), torch.tensor([9], device=DEVICE)
    means = fused_mean_pool(hidden, start, stop, longest=9)
    torch.testing.assert_close(means, hidden[:, 0].float())


def test_no_rows_give_no_means() -> None:
    hidden, start, stop = poisoned(1, 3, 5, [(0, 1)])
    assert fused_mean_pool(hidden[:0], start[:0], stop[:0], longest=3).shape == (0, 5)
