"""TensorRT's timing cache: timings of kernels, kept from one build to the next on the same GPU."""

from pathlib import Path
from types import ModuleType
from typing import Any

from anna_export.choices import Target
from anna_export.engines.capability import Capability
from anna_export.files.atomic import write_bytes
from anna_export.files.cache import default_cache


class TimingCache:
    """The timing cache of one library's version on one GPU.

    Args:
        trt: TensorRT.
        capability: The GPU.
    """

    def __init__(self, trt: ModuleType, capability: Capability) -> None:
        name = f"{Target.TENSORRT}-{trt.__version__}-{capability.name}.timings"
        self._path: Path = default_cache() / "engines" / name

    def load(self, config: Any) -> None:
        """Have a build use the stored timings; those of another kind of GPU are left aside."""
        content = self._path.read_bytes() if self._path.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(content), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def save(self, config: Any) -> None:
        """Store the timings of a build, and those it began with."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self._path, memoryview(config.get_timing_cache().serialize()))
