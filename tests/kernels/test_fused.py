"""The fused kernels against their reference: on a GPU, or (TRITON_INTERPRET=1) in the interpreter.

`test_interpreted.py` starts the second way, in a process of its own, so this file uses no conftest.
"""

from collections.abc import Iterator

import pytest
import torch
from anna_kernels import reference

pytest.importorskip("triton", reason="the fused version needs triton: Linux on x86_64")
import triton
from anna_kernels import fused

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
SHAPES = [(1, 1, 8), (3, 7, 129), (2, 33, 4096), (2, 5, fused.MAX_BLOCK + 77)]
# more than any block covers past the end of a row, and whole 16-byte steps
MARGIN = fused.MAX_BLOCK


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
    hidden: torch.Tensor, last: torch.Tensor, eps: float = 1e-12
) -> torch.Tensor:
    found = fused.pool_normalise(hidden, last, eps)
    expected = reference.pool_normalise(hidden, last, eps)
    # both sum in float32, so only the order of the sum differs
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5, equal_nan=True)
    return found


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "seq", "dim"), SHAPES)
def test_matches_reference_and_reads_no_other_token(
    batch: int, seq: int, dim: int, dtype: torch.dtype
) -> None:
    found = assert_matches_reference(*poisoned(batch, seq, dim, dtype))
    assert found.isfinite().all()


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=str)
def test_memory_not_aligned_to_16_bytes_is_read_right(dtype: torch.dtype) -> None:
    found = assert_matches_reference(*poisoned(3, 5, 64, dtype, shift=1))
    assert found.isfinite().all()


@pytest.mark.parametrize("dim", [129, fused.MAX_BLOCK + 77])
def test_kernel_writes_its_rows_and_nothing_else(dim: int) -> None:
    hidden, last = poisoned(3, 7, dim)
    memory = torch.full((2 * MARGIN + 3 * dim,), NAN, device=DEVICE)
    output = memory[MARGIN:-MARGIN].view(3, dim)
    block, num_warps = fused.tiling(dim)
    fused.pool_normalise_kernel[(3,)](
        hidden, last, 7, output, D=dim, EPS=1e-12, BLOCK=block, num_warps=num_warps
    )
    assert output.isfinite().all()
    assert memory[:MARGIN].isnan().all() and memory[-MARGIN:].isnan().all()


def test_zero_row_stays_zero_beside_another() -> None:
    hidden, last = poisoned(2, 3, 129)
    hidden[1, last[1]] = 0
    found = assert_matches_reference(hidden, last)
    assert found[0].any() and not found[1].any()


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 100])
def test_row_shorter_than_eps_is_divided_by_eps(eps: float) -> None:
    hidden = torch.full((1, 1, 4), eps / 8, device=DEVICE)
    found = assert_matches_reference(hidden, torch.tensor([0], device=DEVICE), eps)
    torch.testing.assert_close(found, torch.full_like(found, 1 / 8))


def test_squares_past_the_range_of_float16_are_summed_in_float32() -> None:
    hidden = torch.full((1, 1, 9), 6e4, dtype=torch.float16, device=DEVICE)
    found = assert_matches_reference(hidden, torch.tensor([0], device=DEVICE))
    torch.testing.assert_close(found, torch.full_like(found, 1 / 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_value_that_is_not_finite_spoils_its_own_row_as_in_the_reference(value: float) -> None:
    hidden, last = poisoned(3, 7, 129)
    hidden[1, last[1], 128] = value
    found = assert_matches_reference(hidden, last)
    assert found[1].isnan().any() and found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("index", [-1, 7, -(2**40), 2**40])
def test_index_outside_gives_a_row_of_nan(index: int) -> None:
    hidden = torch.ones(3, 7, 129, device=DEVICE)
    found = fused.pool_normalise(hidden, torch.tensor([0, index, 6], device=DEVICE))
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()


def test_strided_tensors_are_read_by_their_strides() -> None:
    hidden, last = poisoned(3, 7, 130)
    strided = torch.stack([torch.full_like(hidden, NAN), hidden], dim=-1)[..., 1].transpose(0, 1)
    strided = strided.contiguous().transpose(0, 1)[..., ::2]
    lasts = torch.stack([last, last + 99], dim=1)[:, 0]
    assert not strided.is_contiguous() and not lasts.is_contiguous()
    found = fused.pool_normalise(strided, lasts)
    torch.testing.assert_close(
        found, fused.pool_normalise(hidden[..., ::2].contiguous(), last), atol=0, rtol=0
    )


def test_no_rows_give_no_vectors() -> None:
    hidden, last = poisoned(2, 3, 5)
    assert fused.pool_normalise(hidden[:0], last[:0]).shape == (0, 5)


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
    assert (fused.pool_normalise(hidden, last)[:, 0] == signs).all()
