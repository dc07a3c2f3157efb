"""Which device a backend computes on."""

from anna_export.choices import DEVICES
from anna_export.errors import InputError


def pick_device(device: str, *, has_cuda: bool, without: str) -> str:
    """Return "cpu" or "cuda".

    Args:
        device: One of DEVICES; "auto" takes CUDA where it is.
        has_cuda: Whether the runtime can compute on CUDA here.
        without: The error for CUDA where it cannot.

    Raises:
        InputError: If it is no device, or CUDA is asked for and not here.
    """
    if device not in DEVICES:
        raise InputError(f"expected a device of {', '.join(DEVICES)}, found {device!r}")
    if device == "cuda" and not has_cuda:
        raise InputError(without)
    return "cuda" if has_cuda and device != "cpu" else "cpu"
