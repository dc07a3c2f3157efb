"""What both versions of a kernel refuse, in the same words, without waiting for a device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from anna_kernels import reference

pytest.importorskip("triton", reason="the fused version needs triton: Linux on x86_64")
from anna_kernels import fused

Pool = Callable[..., torch.Tensor]
HIDDEN, LAST = torch.ones(2, 3, 5), torch.tensor([0, 2])

both = pytest.mark.parametrize(
    "pool", [reference.pool_normalise, fused.pool_normalise], ids=["reference", "fused"]
)


@both
@pytest.mark.parametrize(
    ("hidden", "last", "found"),
    [
        (HIDDEN.double(), LAST, "found torch.float64"),
        (HIDDEN, LAST.int(), "found torch.int32; convert it with last.long()"),
        (HIDDEN.numpy(), LAST, "expected hidden as a torch tensor, found ndarray"),
        (HIDDEN, [0, 2], "expected last as a torch tensor, found list"),
    ],
    ids=["float64", "int32", "numpy", "list"],
)
def test_wrong_type_is_refused(pool: Pool, hidden: Any, last: Any, found: str) -> None:
    with pytest.raises(TypeError) as caught:
        pool(hidden, last)
    assert found in str(caught.value)


@both
@pytest.mark.parametrize(
    ("hidden", "last", "found"),
    [
        (HIDDEN[0], LAST, r"found \(3, 5\) and \(2,\)"),
        (HIDDEN, LAST[:1], r"found \(2, 3, 5\) and \(1,\)"),
        (HIDDEN, LAST[:, None], r"found \(2, 3, 5\) and \(2, 1\)"),
        (HIDDEN[:, :0], LAST, r"found \(2, 0, 5\)"),
        (HIDDEN[..., :0], LAST, r"found \(2, 3, 0\)"),
        (HIDDEN, LAST.to("meta"), "found hidden on cpu and last on meta"),
    ],
    ids=["flat", "broadcast", "column", "no tokens", "no width", "two devices"],
)
def test_shapes_and_devices_that_disagree_are_refused(
    pool: Pool, hidden: torch.Tensor, last: torch.Tensor, found: str
) -> None:
    with pytest.raises(ValueError, match=found):
        pool(hidden, last)


# 1e-40 is above zero in Python and zero on a device that flushes subnormal numbers
@both
@pytest.mark.parametrize("eps", [0.0, -1e-12, 1e-40, 1e39, float("inf"), float("nan")])
def test_eps_that_float32_cannot_hold_is_refused(pool: Pool, eps: float) -> None:
    with pytest.raises(ValueError, match=r"expected eps between 1\.2e-38 and"):
        pool(HIDDEN, LAST, eps)


def test_fused_refuses_to_lose_a_gradient() -> None:
    with pytest.raises(ValueError, match="found requires_grad; train with"):
        fused.pool_normalise(HIDDEN.clone().requires_grad_(), LAST)


def test_fused_refuses_tensors_of_the_cpu() -> None:
    with pytest.raises(ValueError, match="expected tensors on a CUDA device, found cpu"):
        fused.pool_normalise(HIDDEN, LAST)
