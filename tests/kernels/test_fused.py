"""The fused kernels against their reference: on a GPU, or (TRITON_INTERPRET=1) in the interpreter.

`test_interpreted.py` starts the second way, in a process of its own, so this file uses no conftest.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from anna_kernels import reference
from anna_kernels.pooling import (
    DTYPES,
    Last,
    Lengths,
    Mask,
    Offsets,
    Output,
    Pooled,
    RMSNorm,
    Tokens,
)

pytest.importorskip("triton", reason="the fused version needs triton: Linux on x86_64")
import itertools

import triton
from anna_kernels import fused
from anna_kernels.kernel import MASK_BLOCK, MAX_BLOCK, Variant, last_token_pool_normalise_kernel

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


def ranges_of(width: int) -> torch.Tensor:
    """Make (2, width) limits that cut some values off, one dimension's being equal."""
    spread = torch.linspace(0.1, 1.0, width) * width**-0.5
    spread[width // 2] = 0
    return torch.stack([-spread, 1.5 * spread]).to(DEVICE)


def assert_matches_reference(hidden: torch.Tensor, tokens: Tokens, **options: Any) -> Pooled:
    output = options.get("output", Output.FLOAT32)
    found = fused.last_token_pool_normalise(hidden, tokens, **options)
    expected = reference.last_token_pool_normalise(hidden, tokens, **options)
    assert found.finite.tolist() == expected.finite.tolist()
    rows = expected.finite
    got, wanted = found.vectors[rows], expected.vectors[rows]
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    if output.is_scaled:
        # a value on a border may fall to the next step: sums have another order
        apart = (got.int() - wanted.int()).abs()
        assert apart.max() <= 1 and (apart != 0).float().mean() <= 2e-3
    elif output.is_packed:
        assert torch.equal(got, wanted)
    else:
        # both sum in float32, so only the order of the sum differs; a 16-bit output may round apart
        atol, rtol = (1e-7, 1e-5) if output is Output.FLOAT32 else (1e-6, 2**-7)
        torch.testing.assert_close(got, wanted, atol=atol, rtol=rtol)
        assert torch.equal(found.vectors.isfinite().all(1), rows)
    if not output.is_float:
        assert not found.vectors[~rows].any() and not expected.vectors[~rows].any()
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "seq", "dim"), SHAPES)
def test_matches_reference_and_reads_no_other_token(
    batch: int, seq: int, dim: int, dtype: torch.dtype
) -> None:
    hidden, last = poisoned(batch, seq, dim, dtype)
    assert assert_matches_reference(hidden, Last(last)).finite.all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_not_aligned_to_16_bytes_is_read_right(dtype: torch.dtype) -> None:
    hidden, last = poisoned(3, 5, 64, dtype, shift=1)
    assert assert_matches_reference(hidden, Last(last)).finite.all()


# -- where the last token is --


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32], ids=str)
def test_last_token_is_found_by_index_and_by_length(index_dtype: torch.dtype) -> None:
    hidden, last = poisoned(5, 7, 129)
    expected = assert_matches_reference(hidden, Last(last.to(index_dtype)))
    found = assert_matches_reference(hidden, Lengths((last + 1).to(index_dtype)))
    assert torch.equal(found.vectors, expected.vectors)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("seq", [1, 7, MASK_BLOCK + 9])
@pytest.mark.parametrize("side", ["right", "left", "holes"])
def test_last_token_is_found_by_mask(side: str, seq: int, mask_dtype: torch.dtype) -> None:
    hidden, last = poisoned(3, seq, 8)
    places = torch.arange(seq, device=DEVICE)
    mask = places <= last[:, None]
    if side == "left":
        mask = mask & (places >= last[:, None] // 2)
    elif side == "holes":
        mask = mask & ((places - last[:, None]) % 2 == 0)
    expected = fused.last_token_pool_normalise(hidden, Last(last))
    found = assert_matches_reference(hidden, Mask(mask.to(mask_dtype)))
    assert torch.equal(found.vectors, expected.vectors)


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32], ids=str)
def test_packed_rows_give_the_same_vectors_as_padded_ones(index_dtype: torch.dtype) -> None:
    hidden, last = poisoned(3, 7, 129)
    packed = torch.cat([row[: index + 1] for row, index in zip(hidden, last, strict=True)])
    offsets = torch.nn.functional.pad((last + 1).cumsum(0), (1, 0)).to(index_dtype)
    expected = fused.last_token_pool_normalise(hidden, Last(last))
    found = assert_matches_reference(packed, Offsets(offsets))
    assert torch.equal(found.vectors, expected.vectors)


@pytest.mark.parametrize("output", [Output.FLOAT32, Output.INT8, Output.UBINARY])
@pytest.mark.parametrize(
    "tokens",
    [
        *(Last(torch.tensor([0, index, 6])) for index in (-1, 7, -(2**40), 2**40)),
        *(Lengths(torch.tensor([1, length, 7])) for length in (0, 8, -1)),
        Mask(torch.tensor([[True] * 7, [False] * 7, [True] * 7])),
    ],
    ids=lambda value: getattr(value, "form", str(value)),
)
def test_row_without_a_last_token_is_flagged(tokens: Any, output: Output) -> None:
    hidden = torch.ones(3, 7, 129, device=DEVICE)
    ranges = ranges_of(129) if output.is_scaled else None
    placed = type(tokens)(tokens.values.to(DEVICE))
    found = fused.last_token_pool_normalise(hidden, placed, output=output, ranges=ranges)
    assert found.finite.tolist() == [True, False, True]
    assert found.vectors[1].isnan().all() if output.is_float else not found.vectors[1].any()


@pytest.mark.parametrize("offsets", [[0, 2, 2, 4], [0, 3, 2, 4], [0, 2, 9, 4], [-3, -1, 2, 4]])
def test_offsets_that_do_not_rise_or_pass_the_end_are_flagged(offsets: list[int]) -> None:
    hidden = torch.ones(4, 8, device=DEVICE)
    found = fused.last_token_pool_normalise(hidden, Offsets(torch.tensor(offsets, device=DEVICE)))
    expected = [0 <= a < b <= 4 for a, b in itertools.pairwise(offsets)]
    assert found.finite.tolist() == expected and False in expected


# -- norm, width, output --


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "seq", "dim"), SHAPES)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_final_norm_of_the_whole_row_comes_before_the_cut(
    batch: int, seq: int, dim: int, dtype: torch.dtype, weight_dtype: torch.dtype, cut: bool
) -> None:
    hidden, last = poisoned(batch, seq, dim, dtype)
    weight = torch.linspace(0.5, 2, dim).to(DEVICE, weight_dtype)
    # an eps as large as the mean of squares, so that it counts
    norm = RMSNorm(weight, eps=1.0)
    width = dim // 2 + 1 if cut else None
    found = assert_matches_reference(hidden, Last(last), norm=norm, width=width)
    assert found.vectors.shape == (batch, width or dim)


def test_eps_of_the_final_norm_decides_what_is_too_short() -> None:
    hidden = torch.full((1, 1, 4), 1e-3, device=DEVICE)
    last, weight = Last(torch.tensor([0], device=DEVICE)), torch.ones(4, device=DEVICE)
    found = assert_matches_reference(hidden, last, norm=RMSNorm(weight, 1.0), eps=1.0)
    torch.testing.assert_close(found.vectors, hidden[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("output", list(Output))
@pytest.mark.parametrize(
    ("dim", "width"),
    [(8, 1), (129, None), (129, 67), (4096, 256), (MAX_BLOCK + 77, None), (MAX_BLOCK + 77, 8)],
)
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
def test_every_output_at_every_width(
    output: Output, dim: int, width: int | None, normed: bool
) -> None:
    hidden, last = poisoned(4, 3, dim, torch.bfloat16)
    norm = RMSNorm(torch.linspace(-1, 2, dim).to(DEVICE), 1e-5) if normed else None
    ranges = ranges_of(width or dim) if output.is_scaled else None
    assert_matches_reference(
        hidden, Last(last), norm=norm, width=width, output=output, ranges=ranges
    )


@pytest.mark.parametrize("output", list(Output))
@pytest.mark.parametrize("dim", [129, MAX_BLOCK + 77])
def test_kernel_writes_its_rows_and_nothing_else(dim: int, output: Output) -> None:
    hidden, last = poisoned(3, 7, dim)
    variant = Variant(dim, hidden.dtype, output=output, flagged=True)
    size = 3 * output.elements(dim)
    poison = NAN if output.is_float else 77
    memory = torch.full((2 * MARGIN + size,), poison, dtype=output.dtype, device=DEVICE)
    flags = torch.zeros(19, dtype=torch.bool, device=DEVICE)
    last_token_pool_normalise_kernel[(3,)](
        hidden,
        last,
        None,
        ranges_of(dim) if output.is_scaled else None,
        7,
        memory[MARGIN:],
        flags[8:],
        **variant.constants(),
        num_warps=variant.num_warps,
    )
    for margin in (memory[:MARGIN], memory[MARGIN + size :]):
        assert margin.isnan().all() if output.is_float else (margin == poison).all()
    assert flags.nonzero()[:, 0].tolist() == [8, 9, 10]
    if output.is_float:
        assert memory[MARGIN : MARGIN + size].isfinite().all()


# -- values --


def test_zero_row_stays_zero_beside_another() -> None:
    hidden, last = poisoned(2, 3, 129)
    hidden[1, last[1]] = 0
    vectors, finite = assert_matches_reference(hidden, Last(last))
    assert vectors[0].any() and not vectors[1].any() and finite.all()


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 100])
def test_row_shorter_than_eps_is_divided_by_eps(eps: float) -> None:
    hidden = torch.full((1, 1, 4), eps / 8, device=DEVICE)
    last = Last(torch.tensor([0], device=DEVICE))
    found = assert_matches_reference(hidden, last, eps=eps).vectors
    torch.testing.assert_close(found, torch.full_like(found, 1 / 8))


def test_squares_past_the_range_of_float16_are_summed_in_float32() -> None:
    hidden = torch.full((1, 1, 9), 6e4, dtype=torch.float16, device=DEVICE)
    found = assert_matches_reference(hidden, Last(torch.tensor([0], device=DEVICE))).vectors
    torch.testing.assert_close(found, torch.full_like(found, 1 / 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("output", [Output.FLOAT32, Output.INT8, Output.BINARY])
@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf"), 1e30])
def test_row_that_is_not_finite_is_flagged_alone(
    value: float, output: Output, normed: bool
) -> None:
    hidden, last = poisoned(3, 7, 129)
    hidden[1, last[1], 128] = value
    norm = RMSNorm(torch.ones(129, device=DEVICE), 1e-5) if normed else None
    ranges = ranges_of(129) if output.is_scaled else None
    found = fused.last_token_pool_normalise(
        hidden, Last(last), norm=norm, output=output, ranges=ranges
    )
    expected = reference.last_token_pool_normalise(
        hidden, Last(last), norm=norm, output=output, ranges=ranges
    )
    assert found.finite.tolist() == expected.finite.tolist() == [True, False, True]
    if not output.is_float:
        assert not found.vectors[1].any()


def test_value_past_the_width_counts_only_for_the_norm() -> None:
    hidden, last = poisoned(1, 3, 129)
    hidden[0, last[0], 128] = NAN
    norm = RMSNorm(torch.ones(129, device=DEVICE), 1e-5)
    for version in (fused, reference):
        pool = version.last_token_pool_normalise
        assert pool(hidden, Last(last), width=128).finite.all()
        assert not pool(hidden, Last(last), width=128, norm=norm).finite.any()


def test_strided_tensors_are_read_by_their_strides() -> None:
    hidden, last = poisoned(3, 7, 130)
    strided = torch.stack([torch.full_like(hidden, NAN), hidden], dim=-1)[..., 1].transpose(0, 1)
    strided = strided.contiguous().transpose(0, 1)[..., ::2]
    lasts = torch.stack([last, last + 99], dim=1)[:, 0]
    assert not strided.is_contiguous() and not lasts.is_contiguous()
    found = fused.last_token_pool_normalise(strided, Last(lasts)).vectors
    expected = fused.last_token_pool_normalise(hidden[..., ::2].contiguous(), Last(last)).vectors
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_no_rows_give_no_vectors() -> None:
    hidden, last = poisoned(2, 3, 5)
    vectors, finite = fused.last_token_pool_normalise(hidden[:0], Last(last[:0]))
    assert vectors.shape == (0, 5) and finite.shape == (0,)
    packed = Offsets(torch.zeros(1, dtype=torch.int64, device=DEVICE))
    assert fused.last_token_pool_normalise(hidden[0], packed).vectors.shape == (0, 5)


def test_gradient_may_be_wanted_where_none_is_kept() -> None:
    hidden, last = poisoned(2, 3, 5)
    with torch.no_grad():
        assert_matches_reference(hidden.requires_grad_(), Last(last))


def test_offsets_pass_2_to_the_31() -> None:
    # one page a row is touched, of 4 GiB that stay unwritten
    torch.use_deterministic_algorithms(False)
    batch, seq = 65, 2**25 + 1
    hidden = torch.empty(batch, seq, 1, dtype=torch.bfloat16, device=DEVICE)
    last = torch.arange(batch, device=DEVICE) * 1000
    signs = 1.0 - 2.0 * (torch.arange(batch, device=DEVICE) % 2)
    hidden[torch.arange(batch, device=DEVICE), last, 0] = signs.bfloat16()
    assert (batch - 1) * seq > 2**31
    assert (fused.last_token_pool_normalise(hidden, Last(last)).vectors[:, 0] == signs).all()
