"""What both versions of pooling read, and what they refuse in the same words."""

from dataclasses import dataclass
from typing import Final

import torch

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
INDEX_DTYPES: Final = (torch.int64, torch.int32)


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """The model's final norm: weight (D,) in bf16, fp16 or fp32, and what is added to the mean."""

    weight: torch.Tensor
    eps: float


def check_inputs(
    hidden: torch.Tensor,
    last: torch.Tensor,
    norm: RMSNorm | None,
    eps: float,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> None:
    """Refuse what no version takes; reads no tensor's values, so it never waits for a device."""
    named = {"hidden": hidden, "last": last}
    if norm is not None:
        named["norm.weight"] = norm.weight
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"expected {name} as a torch tensor, found {type(value).__name__}")
        if value.device != hidden.device:
            raise ValueError(
                f"expected all tensors on one device, found hidden on {hidden.device} and {name} "
                f"on {value.device}; move it with .to(hidden.device)"
            )
    check_dtype("hidden", hidden.dtype, dtypes)
    check_dtype("last", last.dtype, INDEX_DTYPES)
    shapes = f"found {tuple(hidden.shape)} and {tuple(last.shape)}"
    if hidden.ndim != 3 or 0 in hidden.shape[1:]:
        raise ValueError(f"expected hidden (B, S, D) with S and D at least 1, {shapes}")
    if last.shape != hidden.shape[:1]:
        raise ValueError(f"expected hidden (B, S, D) and last (B,), {shapes}")
    check_eps("eps", eps)
    if norm is not None:
        check_dtype("norm.weight", norm.weight.dtype, dtypes)
        check_eps("norm.eps", norm.eps)
        if norm.weight.shape != hidden.shape[2:]:
            raise ValueError(
                f"expected norm.weight ({hidden.shape[2]},), found {tuple(norm.weight.shape)}"
            )


def wants_gradient(hidden: torch.Tensor, norm: RMSNorm | None) -> bool:
    """Say whether a gradient is kept and an input wants it."""
    inputs = (hidden,) if norm is None else (hidden, norm.weight)
    return torch.is_grad_enabled() and any(value.requires_grad for value in inputs)


def check_dtype(name: str, dtype: torch.dtype, dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:
    """Refuse a tensor of another type."""
    if dtype not in dtypes:
        names = ", ".join(str(allowed).removeprefix("torch.") for allowed in dtypes)
        raise TypeError(f"expected {name} in {names}, found {dtype}")


def check_eps(name: str, eps: float) -> None:
    """Refuse an eps that float32, in which norms are compared, would make zero or infinite."""
    limits = torch.finfo(torch.float32)
    if not limits.tiny <= eps <= limits.max:
        raise ValueError(
            f"expected {name} between {limits.tiny:.1e} and {limits.max:.1e}, found {eps}"
        )
