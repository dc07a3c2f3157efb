"""What this machine computes on: no figure travels without it."""

import platform


def hardware() -> str:
    """Return the processor's name and the number of its cores, and the GPU's where there is one."""
    import torch  # every process that measures has loaded it

    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    processor = f"{names[0]} x{len(names)}" if names else platform.machine()
    if torch.cuda.is_available():
        return f"{processor}, {torch.cuda.get_device_name()}"
    return processor
