"""What both versions of a kernel refuse, in the same words, without waiting for a device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from anna_kernels import last_token_pool_normalise, reference
from anna_kernels.pooling import Last, Lengths, Mask, Offsets, Output, Pooled, RMSNorm

pytest.importorskip("triton", reason="the fused version needs triton: Linux on x86_64")
from anna_kernels import fused

Pool = Callable[..., Pooled]
HIDDEN, LAST = torch.ones(2, 3, 5), torch.tensor([0, 2])
POOLED = Last(LAST)

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
    ("hidden", "tokens", "found"),
    [
        (HIDDEN.int(), POOLED, "found torch.int32"),
        (HIDDEN, Last(LAST.short()), "expected last in int64 or int32, found torch.int16"),
        (HIDDEN, Lengths(LAST.bool()), "expected lengths in int64 or int32, found torch.bool"),
        (HIDDEN, Mask(HIDDEN[..., 0]), "mask in int64 or int32 or bool, found torch.float32"),
        (HIDDEN.numpy(), POOLED, "expected hidden as a torch tensor, found ndarray"),
        (HIDDEN, Last([0, 2]), "expected last as a torch tensor, found list"),  # type: ignore[arg-type]
        (HIDDEN, LAST, "expected tokens as Last, Lengths, Mask or Offsets, found Tensor"),
    ],
    ids=["int32", "int16", "bool lengths", "float mask", "numpy", "list", "bare"],
)
def test_wrong_type_is_refused(pool: Pool, hidden: Any, tokens: Any, found: str) -> None:
    with pytest.raises(TypeError) as caught:
        pool(hidden, tokens)
    assert found in str(caught.value)


@every
@pytest.mark.parametrize(
    ("hidden", "tokens", "found"),
    [
        (HIDDEN[0], POOLED, r"found \(3, 5\) and \(2,\)"),
        (HIDDEN, Last(LAST[:1]), r"found \(2, 3, 5\) and \(1,\)"),
        (HIDDEN, Lengths(LAST[:, None]), r"and lengths \(B,\), found \(2, 3, 5\) and \(2, 1\)"),
        (HIDDEN, Mask(torch.ones(2, 4).int()), r"and mask \(B, S\), found .* and \(2, 4\)"),
        (HIDDEN, Offsets(LAST), r"expected packed hidden \(T, D\) .*, found \(2, 3, 5\)"),
        (HIDDEN[0], Offsets(LAST[:0]), r"and offsets \(B \+ 1,\), found \(3, 5\) and \(0,\)"),
        (HIDDEN[:, :0], POOLED, r"found \(2, 0, 5\)"),
        (HIDDEN[..., :0], POOLED, r"found \(2, 3, 0\)"),
        (HIDDEN, Last(LAST.to("meta")), "found hidden on cpu and last on meta"),
    ],
    ids=[
        "flat",
        "broadcast",
        "column",
        "mask",
        "packed",
        "no offsets",
        "no tokens",
        "no width",
        "two devices",
    ],
)
def test_shapes_and_devices_that_disagree_are_refused(
    pool: Pool, hidden: torch.Tensor, tokens: Any, found: str
) -> None:
    with pytest.raises(ValueError, match=found):
        pool(hidden, tokens)


@every
@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"norm": RMSNorm(torch.ones(4), 1e-5)}, r"expected norm.weight \(5,\), found \(4,\)"),
        ({"norm": RMSNorm(torch.ones(5), 0.0)}, "expected norm.eps between"),
        ({"width": 0}, r"expected width in 1\.\.5, found 0"),
        ({"width": 6}, r"expected width in 1\.\.5, found 6"),
        ({"output": Output.INT8}, "expected ranges for int8 output, found none"),
        ({"ranges": torch.ones(2, 5)}, "expected no ranges for float32 output, found some"),
        (
            {"output": Output.UINT8, "ranges": torch.ones(2, 5), "width": 4},
            r"expected ranges \(2, 4\), .* found \(2, 5\)",
        ),
    ],
    ids=["weight", "norm eps", "no width", "too wide", "no ranges", "ranges", "wide ranges"],
)
def test_options_that_do_not_fit_are_refused(
    pool: Pool, options: dict[str, Any], found: str
) -> None:
    with pytest.raises(ValueError, match=found):
        pool(HIDDEN, POOLED, **options)


# 1e-40 is above zero in Python and zero on a device that flushes subnormal numbers
@every
@pytest.mark.parametrize("eps", [0.0, -1e-12, 1e-40, 1e39, float("inf"), float("nan")])
def test_eps_that_float32_cannot_hold_is_refused(pool: Pool, eps: float) -> None:
    with pytest.raises(ValueError, match=r"expected eps between 1\.2e-38 and"):
        pool(HIDDEN, POOLED, eps=eps)


def test_fused_refuses_to_lose_a_gradient() -> None:
    wanted = "found requires_grad; call anna_kernels.last_token_pool_normalise"
    with pytest.raises(ValueError, match=wanted):
        fused.last_token_pool_normalise(HIDDEN.clone().requires_grad_(), POOLED)
    norm = RMSNorm(torch.ones(5, requires_grad=True), 1e-5)
    with pytest.raises(ValueError, match=wanted):
        fused.last_token_pool_normalise(HIDDEN, POOLED, norm=norm)


def test_fused_refuses_float64() -> None:
    with pytest.raises(TypeError, match=r"float32, bfloat16, float16, found torch\.float64"):
        fused.last_token_pool_normalise(HIDDEN.double(), POOLED)


def test_fused_refuses_tensors_of_the_cpu() -> None:
    with pytest.raises(ValueError, match="expected tensors on a CUDA device, found cpu"):
        fused.last_token_pool_normalise(HIDDEN, POOLED)
