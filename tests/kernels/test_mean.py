"""What the mean of a row's tokens means, by sentence-transformers' modules; and what is refused."""

import re
from typing import Any

import pytest
import torch
from anna_kernels import mean_pool, mean_pool_normalise, token_range
from anna_kernels.pooling import DTYPES
from sentence_transformers.models import Normalize, Pooling

HIDDEN = torch.randn(3, 9, 37, generator=torch.Generator().manual_seed(0))
RIGHT = torch.tensor([[1] * 9, [1] * 4 + [0] * 5, [1] * 3 + [0] * 6])


def library(mask: torch.Tensor, prompt: int, *, normalize: bool) -> torch.Tensor:
    pooling = Pooling(HIDDEN.shape[-1], "mean", include_prompt=not prompt)
    features: dict[str, Any] = {"token_embeddings": HIDDEN.clone(), "attention_mask": mask.clone()}
    if prompt:
        features["prompt_length"] = prompt
    features = pooling(features)
    vectors: torch.Tensor = (Normalize()(features) if normalize else features)["sentence_embedding"]
    return vectors


@pytest.mark.parametrize("prompt", [0, 2])
@pytest.mark.parametrize("mask", [RIGHT, RIGHT.flip(1)], ids=["right", "left"])
def test_mean_of_a_mask_is_that_of_sentence_transformers(mask: torch.Tensor, prompt: int) -> None:
    start, stop = token_range(mask, prompt)
    for pool, normalize in ((mean_pool, False), (mean_pool_normalise, True)):
        expected = library(mask, prompt, normalize=normalize)
        torch.testing.assert_close(pool(HIDDEN, start, stop), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_packed_rows_give_the_padded_rows_vectors(dtype: torch.dtype) -> None:
    hidden = HIDDEN.to(dtype)
    start, stop = token_range(RIGHT)
    behind = stop.cumsum(0)
    packed = hidden[RIGHT.bool()]
    vectors = mean_pool_normalise(packed, behind - stop, behind, longest=9)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, mean_pool_normalise(hidden, start, stop))


def test_zero_mean_stays_zero_and_eps_divides_a_short_one() -> None:
    hidden = torch.stack([torch.zeros(2, 4), torch.full((2, 4), 1e-3)])
    bounds = torch.tensor([0, 0]), torch.tensor([2, 2])
    vectors = mean_pool_normalise(hidden, *bounds, eps=0.5)
    torch.testing.assert_close(vectors, torch.tensor([[0.0] * 4, [2e-3] * 4]))


def test_gradient_reaches_pooled_tokens_alone() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    start, stop = token_range(RIGHT, 1)
    mean_pool_normalise(hidden, start, stop)[:, 0].sum().backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad.any(-1).sum(1), torch.tensor([8, 3, 2]))


@pytest.mark.parametrize(
    ("mask", "prompt", "message"),
    [
        (torch.tensor([[1, 1], [0, 0]]), 0, "each row to pool 1 to 2 of tokens 0..1, found"),
        (torch.tensor([[1, 1], [1, 0]]), 1, "found 1 to before 1 in row 1"),
        (torch.tensor([[1, 0, 1]]), 0, "one run of ones among zeros, found another in row 0"),
        (torch.tensor([[1, 2, 0]]), 0, "one run of ones among zeros, found another in row 0"),
        (torch.tensor([1, 1]), 0, "expected mask (B, S) with S at least 1, found (2,)"),
    ],
    ids=["empty", "all prompt", "hole", "two", "flat"],
)
def test_mask_that_pools_no_run_of_tokens_is_refused(
    mask: torch.Tensor, prompt: int, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        token_range(mask, prompt)


START, STOP = torch.tensor([0, 0, 0]), torch.tensor([9, 4, 3])


@pytest.mark.parametrize(
    ("arguments", "longest", "message"),
    [
        ((HIDDEN.int(), START, STOP), None, "expected hidden in float32"),
        ((HIDDEN, START.short(), STOP), None, "expected start in int64, int32, found torch.int16"),
        ((HIDDEN, START, STOP.int()), None, "expected stop in int64, found torch.int32"),
        ((HIDDEN.numpy(), START, STOP), None, "expected hidden as a torch tensor, found ndarray"),
        ((HIDDEN, START[:1], STOP), None, "expected start and stop (B,) beside hidden"),
        ((HIDDEN[..., :0], START, STOP), None, "expected hidden (B, S, D) or (N, D)"),
        ((HIDDEN, START, STOP.to("meta")), None, "found hidden on cpu and stop on meta"),
        ((HIDDEN[0], START, STOP), None, "expected longest beside packed rows, found None"),
        ((HIDDEN, START, STOP), 10, "expected longest in 1..9, found 10"),
        ((HIDDEN, START, STOP), 8, "to pool 1 to 8 of tokens 0..8, found 0 to before 9 in row 0"),
        ((HIDDEN, START - 1, STOP), None, "found -1 to before 9 in row 0"),
        ((HIDDEN, STOP, STOP), None, "found 9 to before 9 in row 0"),
        ((HIDDEN, START, STOP + 1), None, "found 0 to before 10 in row 0"),
    ],
)
def test_what_has_no_mean_is_refused(arguments: Any, longest: int | None, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        mean_pool(*arguments, longest=longest)
