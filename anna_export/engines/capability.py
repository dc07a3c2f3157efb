"""Compute capabilities: which GPU an engine is for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from anna_export.choices import Target
from anna_export.errors import InputError
from anna_export.machine.gpu import Device


@dataclass(frozen=True, order=True, slots=True)
class Capability:
    """A compute capability, such as 8.9."""

    major: int
    minor: int

    @property
    def name(self) -> str:
        """The name of its architecture, such as sm_89."""
        return f"sm_{self.major}{self.minor}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


# What TensorRT-RTX 1.7 compiles for.
RTX: Final = tuple(Capability(*c) for c in ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)))
# E4M3 products.
FP8: Final = Capability(8, 9)
BF16: Final = Capability(8, 0)
# The oldest GPU that a portable engine of TensorRT's runs on.
PORTABLE: Final = Capability(8, 0)
# Where no GPU says which: the two that a workstation has.
WITHOUT_DEVICE: Final = (Capability(8, 9), Capability(12, 0))


def read_capability(text: str) -> Capability:
    """Read "8.9".

    Raises:
        InputError: If it is no compute capability.
    """
    major, dot, minor = text.partition(".")
    if not (dot and major.isascii() and major.isdigit() and minor.isascii() and minor.isdigit()):
        raise InputError(f"expected a compute capability such as 8.9, found {text!r}")
    return Capability(int(major), int(minor))


def choose(
    requested: Sequence[Capability], target: Target, device: Device | None
) -> tuple[Capability, ...]:
    """Return what to build for: those requested, else this machine's GPU, else 8.9 and 12.0.

    Raises:
        InputError: If the target cannot build for it here.
    """
    local = Capability(*device.capability) if device is not None else None
    if target is Target.TENSORRT:
        if local is None or any(capability != local for capability in requested):
            names = ", ".join(map(str, requested)) or "no GPU"
            raise InputError(
                f"expected `capabilities` {local or 'of a GPU'}: TensorRT builds for the GPU at "
                f"hand; found {names}; build there, or with `target` tensorrt-rtx"
            )
        return (local,)
    default = WITHOUT_DEVICE if local is None else (local,)
    chosen = tuple(dict.fromkeys(requested)) or default
    for capability in chosen:
        if capability not in RTX:
            raise InputError(
                f"expected a compute capability of {', '.join(map(str, RTX))}, which TensorRT-RTX "
                f"compiles for, found {capability}; use `target` tensorrt for a data-centre GPU"
            )
    return chosen
