"""What pooling is told: where each row's last token is, the final norm, and what to write."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final, NamedTuple

import torch

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
INDEX_DTYPES: Final = (torch.int64, torch.int32)


class Output(StrEnum):
    """What a vector is written as.

    The integers are sentence-transformers' (`quantize_embeddings`): int8 and uint8 are 256 steps
    between a smallest and a largest value a dimension, cut to whole ones; binary and ubinary are
    one bit a dimension, set above zero, eight in a byte, the first in its highest bit.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"
    UINT8 = "uint8"
    BINARY = "binary"
    UBINARY = "ubinary"

    @property
    def dtype(self) -> torch.dtype:
        """The element's type."""
        packed = {Output.BINARY: torch.int8, Output.UBINARY: torch.uint8}
        return packed.get(self) or getattr(torch, self.value)

    @property
    def is_scaled(self) -> bool:
        """Whether it needs a range a dimension."""
        return self in (Output.INT8, Output.UINT8)

    @property
    def is_packed(self) -> bool:
        """Whether eight dimensions share a byte."""
        return self in (Output.BINARY, Output.UBINARY)

    @property
    def is_float(self) -> bool:
        """Whether a gradient can flow through it."""
        return self.dtype.is_floating_point

    @property
    def offset(self) -> int:
        """What is taken from the unsigned integers to give the signed ones."""
        return 128 if self in (Output.INT8, Output.BINARY) else 0

    def elements(self, width: int) -> int:
        """Return how many elements a vector of `width` dimensions takes."""
        return -(-width // 8) if self.is_packed else width


@dataclass(frozen=True, slots=True)
class Last:
    """The index of each row's last token: (B,), int32 or int64, 0 <= index < S."""

    values: torch.Tensor
    form: ClassVar = "last"


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many tokens each row has, padded on the right: (B,), int32 or int64, 1 <= length <= S."""

    values: torch.Tensor
    form: ClassVar = "lengths"


@dataclass(frozen=True, slots=True)
class Mask:
    """Which tokens are real, padded on either side: (B, S), bool, int32 or int64."""

    values: torch.Tensor
    form: ClassVar = "mask"


@dataclass(frozen=True, slots=True)
class Offsets:
    """Where each row starts among T packed tokens: (B + 1,), int32 or int64, from 0 up to T."""

    values: torch.Tensor
    form: ClassVar = "offsets"


Tokens = Last | Lengths | Mask | Offsets


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """The model's final norm: weight (D,) in bf16, fp16 or fp32, and what is added to the mean."""

    weight: torch.Tensor
    eps: float


class Pooled(NamedTuple):
    """Vectors, (B, elements), and whether each is to be used, (B,) bool.

    A vector is not finite if a state that it depends on is not, if the sum of their squares passes
    float32, or if there is no last token. Its integers are 0, its floats are not defined.
    """

    vectors: torch.Tensor
    finite: torch.Tensor


def check_inputs(
    hidden: torch.Tensor,
    tokens: Tokens,
    norm: RMSNorm | None,
    width: int | None,
    output: Output,
    ranges: torch.Tensor | None,
    eps: float,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> None:
    """Refuse what no version takes; reads no tensor's values, so it never waits for a device."""
    if not isinstance(tokens, Tokens):
        raise TypeError(
            f"expected tokens as Last, Lengths, Mask or Offsets, found {type(tokens).__name__}"
        )
    named = {"hidden": hidden, tokens.form: tokens.values}
    if norm is not None:
        named["norm.weight"] = norm.weight
    if ranges is not None:
        named["ranges"] = ranges
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"expected {name} as a torch tensor, found {type(value).__name__}")
        if value.device != hidden.device:
            raise ValueError(
                f"expected all tensors on one device, found hidden on {hidden.device} and {name} "
                f"on {value.device}; move it with .to(hidden.device)"
            )
    check_dtype("hidden", hidden.dtype, dtypes)
    _check_tokens(hidden, tokens)
    check_eps("eps", eps)
    dim = hidden.shape[-1]
    if norm is not None:
        check_dtype("norm.weight", norm.weight.dtype, dtypes)
        check_eps("norm.eps", norm.eps)
        if norm.weight.shape != (dim,):
            raise ValueError(f"expected norm.weight ({dim},), found {tuple(norm.weight.shape)}")
    if width is not None and not 1 <= width <= dim:
        raise ValueError(f"expected width in 1..{dim}, found {width}")
    if output.is_scaled != (ranges is not None):
        wanted, found = ("ranges", "none") if output.is_scaled else ("no ranges", "some")
        raise ValueError(f"expected {wanted} for {output} output, found {found}")
    if ranges is not None:
        if ranges.dtype != torch.float32:
            raise TypeError(f"expected ranges in float32, found {ranges.dtype}")
        if ranges.shape != (2, width or dim):
            raise ValueError(
                f"expected ranges (2, {width or dim}), smallest and largest of each dimension, "
                f"found {tuple(ranges.shape)}"
            )


def wants_gradient(hidden: torch.Tensor, norm: RMSNorm | None) -> bool:
    """Say whether a gradient is kept and an input wants it."""
    inputs = (hidden,) if norm is None else (hidden, norm.weight)
    return torch.is_grad_enabled() and any(value.requires_grad for value in inputs)


def _check_tokens(hidden: torch.Tensor, tokens: Tokens) -> None:
    values = tokens.values
    is_mask, is_packed = isinstance(tokens, Mask), isinstance(tokens, Offsets)
    dtypes = (*INDEX_DTYPES, torch.bool) if is_mask else INDEX_DTYPES
    if values.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"expected {tokens.form} in {names}, found {values.dtype}")
    found = f"found {tuple(hidden.shape)} and {tuple(values.shape)}"
    if is_packed:
        if hidden.ndim != 2 or not hidden.shape[1] or values.ndim != 1 or not len(values):
            raise ValueError(
                f"expected packed hidden (T, D) with D at least 1 and offsets (B + 1,), {found}"
            )
        return
    if hidden.ndim != 3 or 0 in hidden.shape[1:]:
        raise ValueError(f"expected hidden (B, S, D) with S and D at least 1, {found}")
    if values.shape != hidden.shape[: 2 if is_mask else 1]:
        shape = "(B, S)" if is_mask else "(B,)"
        raise ValueError(f"expected hidden (B, S, D) and {tokens.form} {shape}, {found}")


def check_dtype(name: str, dtype: torch.dtype, dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:
    """Refuse states of another type."""
    if dtype not in dtypes:
        names = ", ".join(str(one).removeprefix("torch.") for one in dtypes)
        raise TypeError(f"expected {name} in {names}, found {dtype}")


def check_eps(name: str, eps: float) -> None:
    """Refuse an eps that float32, in which norms are compared, would make zero or infinite."""
    limits = torch.finfo(torch.float32)
    if not limits.tiny <= eps <= limits.max:
        raise ValueError(
            f"expected {name} between {limits.tiny:.1e} and {limits.max:.1e}, found {eps}"
        )
