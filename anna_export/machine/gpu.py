"""What GPU and driver are here, asked of CUDA's driver itself.

TensorRT can kill the process where there is no driver, so this is asked before it is touched.
"""

import ctypes
from dataclasses import dataclass
from typing import Final

_CAPABILITY_MAJOR: Final = 75
_CAPABILITY_MINOR: Final = 76


@dataclass(frozen=True, slots=True)
class Device:
    """The first GPU: its compute capability, and the CUDA version of its driver."""

    capability: tuple[int, int]
    driver: str


def find_device() -> Device | None:
    """Return the first GPU, or None where there is no driver or no device."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version, device = ctypes.c_int(), ctypes.c_int()
    parts = ctypes.c_int(), ctypes.c_int()
    steps = (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDriverGetVersion(ctypes.byref(version)),
        lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(parts[0]), _CAPABILITY_MAJOR, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(parts[1]), _CAPABILITY_MINOR, device),
    )
    if any(step() for step in steps):
        return None
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Device((parts[0].value, parts[1].value), driver)
