"""TensorRT 11 and TensorRT-RTX, which are one API: the only place that imports them."""

import importlib
import importlib.util
import mmap
from types import ModuleType
from typing import Any

from anna_export.choices import Target
from anna_export.engines.stored import StoredEngine
from anna_export.errors import DamagedError, ExtraError, InputError
from anna_export.machine.gpu import find_device

_MODULES = {Target.TENSORRT: "tensorrt", Target.TENSORRT_RTX: "tensorrt_rtx"}
_EXTRAS = {Target.TENSORRT: "tensorrt", Target.TENSORRT_RTX: "rtx"}
_TENSORRT_MAJOR = 11


def load_library(target: Target) -> ModuleType:
    """Import what builds engines for a target.

    Raises:
        ExtraError: If it is not installed.
        InputError: If TensorRT has no driver here, or another version than 11.
    """
    if target is Target.TENSORRT and find_device() is None:
        raise InputError(
            "expected a CUDA device and driver for `target` tensorrt, found none; build there, or "
            "with `target` tensorrt-rtx, which needs none"
        )
    try:
        library = importlib.import_module(_MODULES[target])
    except ImportError:
        raise ExtraError(
            f"expected {_MODULES[target]} for `target` {target}, found none; install "
            f"anna-export[{_EXTRAS[target]}]"
        ) from None
    if target is Target.TENSORRT and int(library.__version__.split(".")[0]) < _TENSORRT_MAJOR:
        raise InputError(
            f"expected TensorRT {_TENSORRT_MAJOR} or newer, found {library.__version__}; install "
            f"anna-export[{_EXTRAS[target]}]"
        )
    return library


def load_plugins(target: Target) -> ModuleType | None:
    """Return `tensorrt.plugin` where the pooling kernel can be compiled; else its body is built.

    TensorRT-RTX takes no Python plugins.
    """
    if target is not Target.TENSORRT or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("tensorrt.plugin")


def load_engine(trt: ModuleType, stored: StoredEngine, log: Any) -> Any:
    """Load an engine's file, which is read as the library asks for it.

    Args:
        trt: TensorRT or TensorRT-RTX.
        stored: The engine and its record, for this machine's GPU.
        log: As `logger_of` gives it.

    Raises:
        InputError: If another version of the library built it.
        DamagedError: If the library does not take it.
    """
    path, record = stored.path, stored.record
    remedy = "build it again with anna-export build, or choose `backend` ort"
    if trt.__version__ != record.version:
        raise InputError(
            f"expected {record.target} {record.version}, which built {path}, found "
            f"{trt.__version__}; {remedy}"
        )
    runtime = trt.Runtime(log)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise DamagedError(
            f"expected {path} to load in {record.target} {record.version}, found: "
            f"{' '.join(log.errors[-2:])}; {remedy}"
        )
    return engine


def logger_of(trt: ModuleType) -> Any:
    """Return a logger that keeps every message: the table of fused layers is one of them."""

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.messages.append(message)
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()
