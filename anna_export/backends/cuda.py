"""A GPU's memory, one stream of work on it, and recordings of such work, by CUDA's own runtime.

No PyTorch: a process that serves an engine needs TensorRT and this.
"""

import ctypes
import math
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from anna_export.errors import ExtraError, SpaceError

# Puts work on the GPU's stream; the call returns at once.
GpuLaunch = Callable[[], None]


def load_cuda() -> ModuleType:
    """Import CUDA's runtime for Python.

    Raises:
        ExtraError: If it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise ExtraError(
            "expected cuda-bindings for `backend` trt, found none; install anna-export[tensorrt] "
            "or anna-export[rtx]"
        ) from None
    return runtime


class Block:
    """Memory on the GPU, freed with the object.

    Args:
        cudart: CUDA's runtime.
        size_bytes: How much.

    Raises:
        SpaceError: If the GPU has less.
    """

    def __init__(self, cudart: Any, size_bytes: int) -> None:
        status, address = cudart.cudaMalloc(size_bytes)
        if status == cudart.cudaError_t.cudaErrorMemoryAllocation:
            raise SpaceError(
                f"expected {size_bytes / 1e9:.2f} GB of free memory on the GPU, found less; stop "
                "what else uses it, or take a GPU with more"
            )
        _check(cudart, status)
        self.address = int(address)
        weakref.finalize(self, cudart.cudaFree, self.address).atexit = False


class Gpu:
    """The first GPU, and one stream on which its work is done in order.

    Args:
        cudart: CUDA's runtime, as `load_cuda` gives it.
    """

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        stream = cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking)
        self.stream = int(self._call(stream))

    def allocate(self, size_bytes: int) -> Block:
        """Return memory on the GPU; at least one byte, for what is empty has an address too."""
        return Block(self._cudart, max(1, size_bytes))

    def pinned(self, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
        """Return an array in memory that the GPU copies from and to by itself."""
        size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        address = int(self._call(self._cudart.cudaMallocHost(size_bytes)))
        buffer = (ctypes.c_byte * size_bytes).from_address(address)
        weakref.finalize(buffer, self._cudart.cudaFreeHost, address).atexit = False
        return np.ctypeslib.as_array(buffer).view(dtype).reshape(shape)

    def upload(self, array: np.ndarray) -> Block:
        """Copy an array to memory of its own on the GPU, and wait for it."""
        block = self.allocate(array.nbytes)
        if array.nbytes:
            self.copy_in(np.ascontiguousarray(array), block)
            self.wait()
        return block

    def copy_in(self, array: np.ndarray, block: Block) -> None:
        """Copy a contiguous array to the GPU."""
        cudart = self._cudart
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(
            cudart.cudaMemcpyAsync(
                block.address, array.ctypes.data, array.nbytes, kind, self.stream
            )
        )

    def copy_out(self, block: Block, array: np.ndarray) -> None:
        """Copy memory of the GPU into a contiguous array."""
        cudart = self._cudart
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(
            cudart.cudaMemcpyAsync(
                array.ctypes.data, block.address, array.nbytes, kind, self.stream
            )
        )

    def wait(self) -> None:
        """Return when all work is done."""
        self._call(self._cudart.cudaStreamSynchronize(self.stream))

    def record(self, work: GpuLaunch) -> GpuLaunch:
        """Record work as a CUDA graph, without doing it, and return the launch of that graph."""
        cudart = self._cudart
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(cudart.cudaStreamBeginCapture(self.stream, mode))
        try:
            work()
        finally:
            # a stream that goes on recording can do nothing else
            status, graph = cudart.cudaStreamEndCapture(self.stream)
        _check(cudart, status)
        launched = self._call(cudart.cudaGraphInstantiate(graph, 0))
        self._call(cudart.cudaGraphDestroy(graph))

        def launch() -> None:
            self._call(cudart.cudaGraphLaunch(launched, self.stream))

        weakref.finalize(launch, cudart.cudaGraphExecDestroy, launched).atexit = False
        return launch

    def _call(self, answer: tuple[Any, ...]) -> Any:
        status, *values = answer
        _check(self._cudart, status)
        return values[0] if values else None


def _check(cudart: Any, status: Any) -> None:
    if status != cudart.cudaError_t.cudaSuccess:
        _, text = cudart.cudaGetErrorString(status)
        raise RuntimeError(f"CUDA: {text.decode()}")
