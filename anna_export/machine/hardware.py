"""What this machine computes on: no figure travels without it."""

import platform
from typing import Final

_EXACT_FLAGS: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def hardware() -> str:
    """Return the processor's name and the number of its cores, and the GPU's where there is one."""
    import torch  # every process that measures has loaded it

    names = _of_each_core("model name")
    processor = f"{names[0]} x{len(names)}" if names else platform.machine()
    if torch.cuda.is_available():
        return f"{processor}, {torch.cuda.get_device_name()}"
    return processor


def multiplies_int8_exactly() -> bool:
    """Say whether this processor adds 8-bit products in 32 bits.

    x86 processors without VNNI add pairs of them in 16 bits, which overflow.
    """
    if platform.machine() != "x86_64":
        return True
    flags = _of_each_core("flags")
    return not flags or not _EXACT_FLAGS.isdisjoint(flags[0].split())


def _of_each_core(field: str) -> list[str]:
    """Return what Linux says of each core; nothing where it does not say it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            rows = [line.partition(":") for line in file]
    except OSError:
        return []
    return [value.strip() for name, _, value in rows if name.strip() == field]
