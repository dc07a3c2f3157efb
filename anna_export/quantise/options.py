"""How an artifact's weights are stored: one value for each precision, with what it takes."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Final, TypeAlias

from anna_export.errors import InputError
from anna_export.quantise import bf16, fp8, fp16, fp32, int4, int8
from anna_export.quantise.scheme import Scheme
from anna_export.spec import Precision


@dataclass(frozen=True, slots=True)
class Fp32:
    """32-bit floats."""

    scheme: ClassVar[Scheme] = fp32.SCHEME


@dataclass(frozen=True, slots=True)
class Fp16:
    """16-bit floats; norms in fp32."""

    scheme: ClassVar[Scheme] = fp16.SCHEME


@dataclass(frozen=True, slots=True)
class Bf16:
    """bfloat16."""

    scheme: ClassVar[Scheme] = bf16.SCHEME


@dataclass(frozen=True, slots=True)
class Quantised:
    """What takes a calibration; the base of Int8, Int4 and Fp8.

    Args:
        calibration: A file of texts to calibrate on; None for docstrings of the standard library.
        max_loss: The largest mean 1 - cosine; None for the default, 1 for no bound.

    Raises:
        InputError: If the bound is no loss.
    """

    calibration: Path | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        _ = self.scheme

    @property
    def scheme(self) -> Scheme:
        """How its graphs are made, and the loss they are held to."""
        return self._scheme().with_max_loss(self.max_loss)

    def _scheme(self) -> Scheme:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Int8(Quantised):
    """8-bit integers."""

    def _scheme(self) -> Scheme:
        return int8.SCHEME


@dataclass(frozen=True, slots=True)
class Int4(Quantised):
    """4-bit integers in blocks; the embedding table 8-bit integers."""

    def _scheme(self) -> Scheme:
        return int4.SCHEME


@dataclass(frozen=True, slots=True)
class Fp8(Quantised):
    """8-bit floats (E4M3) in linear layers.

    Args:
        high_precision: The type of what is not quantised: bf16, fp16 or fp32.
    """

    high_precision: Precision = Precision.BF16

    def _scheme(self) -> Scheme:
        return fp8.scheme(self.high_precision)


Storage: TypeAlias = Fp32 | Fp16 | Bf16 | Quantised
STORAGES: Final[dict[Precision, type[Storage]]] = {
    Precision.FP32: Fp32,
    Precision.FP16: Fp16,
    Precision.BF16: Bf16,
    Precision.FP8: Fp8,
    Precision.INT8: Int8,
    Precision.INT4: Int4,
}
# Why a precision has no such option.
_NO_USE: Final = {
    "calibration": ", which needs none",
    "max_loss": ", which is held to a worst cosine",
}


def storage(precision: Precision, **options: object) -> Storage:
    """Return the storage of a precision.

    Args:
        precision: Which one.
        options: What it takes, by name; None takes the default.

    Raises:
        InputError: If the precision has no such option, naming those that do.
    """
    chosen = {name: value for name, value in options.items() if value is not None}
    for name in chosen:
        takers = [key for key, kind in STORAGES.items() if name in _option_names(kind)]
        if precision not in takers:
            *others, last = takers
            named = f"{', '.join(others)} or {last}" if others else last
            raise InputError(
                f"expected `{name}` with {named}, found it with {precision}"
                f"{_NO_USE.get(name, '')}; leave it out"
            )
    return STORAGES[precision](**chosen)  # type: ignore[arg-type]


def _option_names(kind: type[Storage]) -> set[str]:
    return {field.name for field in fields(kind)}
