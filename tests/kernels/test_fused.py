"""The fused kernels against their reference: on a GPU, or (TRITON_INTERPRET=1) in the interpreter.

`test_interpreted.py` starts the second way, in a process of its own, so this file uses no conftest.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from anna_kernels import reference
from anna_kernels.pooling import DTYPES, RMSNorm

pytest.importorskip("triton", reason="the fused version needs triton: Linux on x86_64")
import triton
from anna_kernels import fused
from anna_kernels.kernel import MAX_BLOCK, Variant, last_token_pool_normalise_kernel

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
# Odd, aligned, and longer than one block, so that the row is read twice
SHAPES = [(1, 1, 8), (3, 7, 129), (2, 33, 4096), (2, 5, MAX_BLOCK + 77)]
# more than any block covers past the end of a row, and whole 16-byte steps
MARGIN = MAX_BLOCK


@pytest.fixture(autouse=True)
def nan_filled_empty() -> Iterator[None]:
    """Memory that nobody wrote reads as NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def poisoned(
    batch: int, seq: int, dim: int, dtype: torch.dtype = torch.float32, shift: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make hidden states that are NaN, like the memory around them, but for each last token."""
    size = batch * seq * dim
    memory = torch.full((2 * MARGIN + size,), NAN, dtype=dtype, device=DEVICE)
    hidden = memory[MARGIN + shift :][:size].view(batch, seq, dim)
    random = torch.Generator().manual_seed(size)
    last = torch.randint(seq, (batch,), generator=random).to(DEVICE)
    rows = torch.arange(batch, device=DEVICE)
    hidden[rows, last] = torch.randn(batch, dim, generator=random).to(DEVICE, dtype)
    return hidden, last


def assert_matches_reference(
    hidden: torch.Tensor, last: torch.Tensor, **options: Any
) -> torch.Tensor:
    vectors = fused.last_token_pool_normalise(hidden, last, **options)
    expected = reference.last_token_pool_normalise(hidden, last, **options)
    assert vectors.dtype == expected.dtype == torch.float32
    # both sum in float32, so only the order of the sum differs
    torch.testing.assert_close(vectors, expected, atol=1e-7, rtol=1e-5)
    assert vectors.isfinite().all()
    return vectors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "seq", "dim"), SHAPES)
def test_matches_reference_and_reads_no_other_token(
    batch: int, seq: int, dim: int, dtype: torch.dtype
) -> None:
    hidden, last = poisoned(batch, seq, dim, dtype)
    assert_matches_reference(hidden, last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_not_aligned_to_16_bytes_is_read_right(dtype: torch.dtype) -> None:
    hidden, last = poisoned(3, 5, 64, dtype, shift=1)
    assert_matches_reference(hidden, last)


# -- where the last token is --


def test_last_token_is_found_by_either_index_type() -> None:
    hidden, last = poisoned(5, 7, 129)
    expected = assert_matches_reference(hidden, last.long())
    assert torch.equal(assert_matches_reference(hidden, last.int()), expected)


@pytest.mark.parametrize("index", [-1, 7, -(2**40), 2**40])
def test_row_without_a_last_token_is_nan(index: int) -> None:
    hidden = torch.ones(3, 7, 129, device=DEVICE)
    last = torch.tensor([0, index, 6], device=DEVICE)
    vectors = fused.last_token_pool_normalise(hidden, last)
    assert vectors.isfinite().all(1).tolist() == [True, False, True]
    assert vectors[1].isnan().all()


# -- norm --


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "seq", "dim"), SHAPES)
def test_final_norm_comes_before_unit_length(
    batch: int, seq: int, dim: int, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    hidden, last = poisoned(batch, seq, dim, dtype)
    weight = torch.linspace(0.5, 2, dim).to(DEVICE, weight_dtype)
    # an eps as large as the mean of squares, so that it counts
    assert_matches_reference(hidden, last, norm=RMSNorm(weight, eps=1.0))


def test_eps_of_the_final_norm_decides_what_is_too_short() -> None:
    hidden = torch.full((1, 1, 4), 1e-3, device=DEVICE)
    last, weight = torch.tensor([0], device=DEVICE), torch.ones(4, device=DEVICE)
    vectors = assert_matches_reference(hidden, last, norm=RMSNorm(weight, 1.0), eps=1.0)
    torch.testing.assert_close(vectors, hidden[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("dim", [129, MAX_BLOCK + 77])
def test_kernel_writes_its_rows_and_nothing_else(dim: int) -> None:
    hidden, last = poisoned(3, 7, dim)
    variant = Variant(dim, hidden.dtype)
    size = 3 * dim
    memory = torch.full((2 * MARGIN + size,), NAN, device=DEVICE)
    last_token_pool_normalise_kernel[(3,)](
        hidden,
        last,
        None,
        7,
        memory[MARGIN:],
        **variant.constants(),
        num_warps=variant.num_warps,
    )
    for margin in (memory[:MARGIN], memory[MARGIN + size :]):
        assert margin.isnan().all()
    assert memory[MARGIN : MARGIN + size].isfinite().all()


# -- values --


def test_zero_row_stays_zero_beside_another() -> None:
    hidden, last = poisoned(2, 3, 129)
    hidden[1, last[1]] = 0
    vectors = assert_matches_reference(hidden, last)
    assert vectors[0].any() and not vectors[1].any()


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 100])
def test_row_shorter_than_eps_is_divided_by_eps(eps: float) -> None:
    hidden = torch.full((1, 1, 4), eps / 8, device=DEVICE)
    last = torch.tensor([0], device=DEVICE)
    vectors = assert_matches_reference(hidden, last, eps=eps)
    torch.testing.assert_close(vectors, torch.full_like(vectors, 1 / 8))


def test_squares_past_the_range_of_float16_are_summed_in_float32() -> None:
    hidden = torch.full((1, 1, 9), 6e4, dtype=torch.float16, device=DEVICE)
    vectors = assert_matches_reference(hidden, torch.tensor([0], device=DEVICE))
    torch.testing.assert_close(vectors, torch.full_like(vectors, 1 / 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_value_that_is_not_finite_stays_in_its_row(value: float, normed: bool) -> None:
    hidden, last = poisoned(3, 7, 129)
    hidden[1, last[1], 128] = value
    norm = RMSNorm(torch.ones(129, device=DEVICE), 1e-5) if normed else None
    for version in (fused, reference):
        vectors = version.last_token_pool_normalise(hidden, last, norm=norm)
        assert vectors.isfinite().all(1).tolist() == [True, False, True]


def test_strided_tensors_are_read_by_their_strides() -> None:
    hidden, last = poisoned(3, 7, 130)
    strided = torch.stack([torch.full_like(hidden, NAN), hidden], dim=-1)[..., 1].transpose(0, 1)
    strided = strided.contiguous().transpose(0, 1)[..., ::2]
    lasts = torch.stack([last, last + 99], dim=1)[:, 0]
    assert not strided.is_contiguous() and not lasts.is_contiguous()
    vectors = fused.last_token_pool_normalise(strided, lasts)
    expected = fused.last_token_pool_normalise(hidden[..., ::2].contiguous(), last)
    torch.testing.assert_close(vectors, expected, atol=0, rtol=0)


def test_no_rows_give_no_vectors() -> None:
    hidden, last = poisoned(2, 3, 5)
    assert fused.last_token_pool_normalise(hidden[:0], last[:0]).shape == (0, 5)


def test_gradient_may_be_wanted_where_none_is_kept() -> None:
    hidden, last = poisoned(2, 3, 5)
    with torch.no_grad():
        assert_matches_reference(hidden.requires_grad_(), last)


def test_offsets_pass_2_to_the_31() -> None:
    # one page a row is touched, of 4 GiB that stay unwritten
    torch.use_deterministic_algorithms(False)
    batch, seq = 65, 2**25 + 1
    hidden = torch.empty(batch, seq, 1, dtype=torch.bfloat16, device=DEVICE)
    last = torch.arange(batch, device=DEVICE) * 1000
    signs = 1.0 - 2.0 * (torch.arange(batch, device=DEVICE) % 2)
    hidden[torch.arange(batch, device=DEVICE), last, 0] = signs.bfloat16()
    assert (batch - 1) * seq > 2**31
    assert (fused.last_token_pool_normalise(hidden, last)[:, 0] == signs).all()
