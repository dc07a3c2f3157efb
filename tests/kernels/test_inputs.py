"""What both versions of a kernel refuse, in the same words, without waiting for a device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from anna_kernels import last_token_pool_normalise, reference
from anna_kernels.pooling import RMSNorm

pytest.importorskip("triton", reason="the fused version needs triton: Linux on x86_64")
from anna_kernels import fused

Pool = Callable[..., torch.Tensor]
HIDDEN, LAST = torch.ones(2, 3, 5), torch.tensor([0, 2])

every = pytest.mark.parametrize(
    "pool",
    [
        reference.last_token_pool_normalise,
        fused.last_token_pool_normalise,
        last_token_pool_normalise,
    ],
    ids=["reference", "fused", "offered"],
)


@every
@pytest.mark.parametrize(
    ("hidden", "last", "message"),
    [
        (HIDDEN.int(), LAST, "found torch.int32"),
        (HIDDEN, LAST.short(), "expected last in int64, int32, found torch.int16"),
        (HIDDEN.numpy(), LAST, "expected hidden as a torch tensor, found ndarray"),
        (HIDDEN, [0, 2], "expected last as a torch tensor, found list"),
    ],
    ids=["int32", "int16", "numpy", "list"],
)
def test_wrong_type_is_refused(pool: Pool, hidden: Any, last: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        pool(hidden, last)
    assert message in str(caught.value)


@every
@pytest.mark.parametrize(
    ("hidden", "last", "message"),
    [
        (HIDDEN[0], LAST, r"found \(3, 5\) and \(2,\)"),
        (HIDDEN, LAST[:1], r"found \(2, 3, 5\) and \(1,\)"),
        (HIDDEN, LAST[:, None], r"and last \(B,\), found \(2, 3, 5\) and \(2, 1\)"),
        (HIDDEN[:, :0], LAST, r"found \(2, 0, 5\)"),
        (HIDDEN[..., :0], LAST, r"found \(2, 3, 0\)"),
        (HIDDEN, LAST.to("meta"), "found hidden on cpu and last on meta"),
    ],
    ids=["flat", "broadcast", "column", "no tokens", "no width", "two devices"],
)
def test_shapes_and_devices_that_disagree_are_refused(
    pool: Pool, hidden: torch.Tensor, last: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pool(hidden, last)


@every
@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (RMSNorm(torch.ones(4), 1e-5), r"expected norm.weight \(5,\), found \(4,\)"),
        (RMSNorm(torch.ones(5), 0.0), "expected norm.eps between"),
    ],
    ids=["weight", "norm eps"],
)
def test_norm_that_does_not_fit_is_refused(pool: Pool, norm: RMSNorm, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool(HIDDEN, LAST, norm=norm)


# 1e-40 is above zero in Python and zero on a device that flushes subnormal numbers
@every
@pytest.mark.parametrize("eps", [0.0, -1e-12, 1e-40, 1e39, float("inf"), float("nan")])
def test_eps_that_float32_cannot_hold_is_refused(pool: Pool, eps: float) -> None:
    with pytest.raises(ValueError, match=r"expected eps between 1\.2e-38 and"):
        pool(HIDDEN, LAST, eps=eps)


def test_fused_refuses_to_lose_a_gradient() -> None:
    message = "found requires_grad; call anna_kernels.last_token_pool_normalise"
    with pytest.raises(ValueError, match=message):
        fused.last_token_pool_normalise(HIDDEN.clone().requires_grad_(), LAST)
    norm = RMSNorm(torch.ones(5, requires_grad=True), 1e-5)
    with pytest.raises(ValueError, match=message):
        fused.last_token_pool_normalise(HIDDEN, LAST, norm=norm)


def test_fused_refuses_float64() -> None:
    with pytest.raises(TypeError, match=r"float32, bfloat16, float16, found torch\.float64"):
        fused.last_token_pool_normalise(HIDDEN.double(), LAST)


def test_fused_refuses_tensors_of_the_cpu() -> None:
    with pytest.raises(ValueError, match="expected tensors on a CUDA device, found cpu"):
        fused.last_token_pool_normalise(HIDDEN, LAST)
