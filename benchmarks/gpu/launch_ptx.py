"""Launching a kernel's PTX through the CUDA driver, as TensorRT does: no Triton, no PyTorch."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from anna_kernels.ahead_of_time import CompiledKernel


def launch(kernel: CompiledKernel, rows: int, arguments: Sequence[torch.Tensor | int]) -> None:
    """Launch with grid (rows,) on the current context and wait; pointers and int32 in this order.

    Raises:
        RuntimeError: If the driver refuses the PTX, the launch or the run.
    """
    cuda = ctypes.CDLL("libcuda.so.1")
    torch.cuda.current_stream().synchronize()

    def call(name: str, *values: Any) -> None:
        status = getattr(cuda, name)(*values)
        if status:
            text = ctypes.c_char_p()
            cuda.cuGetErrorString(status, ctypes.byref(text))
            message = (text.value or b"").decode()
            raise RuntimeError(f"expected {name} to succeed, found error {status}: {message}")

    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    call("cuModuleLoadData", ctypes.byref(module), kernel.ptx.encode() + b"\0")
    call("cuModuleGetFunction", ctypes.byref(function), module, kernel.name.encode())
    values = [
        ctypes.c_int32(value) if isinstance(value, int) else ctypes.c_void_p(value.data_ptr())
        for value in arguments
    ]
    pointers = (ctypes.c_void_p * len(values))(
        *(ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values)
    )
    threads = 32 * kernel.num_warps
    call(
        "cuLaunchKernel",
        function,
        *(rows, 1, 1),
        *(threads, 1, 1),
        kernel.shared_bytes,
        None,
        pointers,
        None,
    )
    call("cuCtxSynchronize")
    call("cuModuleUnload", module)
