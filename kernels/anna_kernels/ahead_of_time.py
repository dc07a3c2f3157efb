"""Compile the kernels to PTX with no GPU present, in the form TensorRT's plugins can launch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from anna_kernels.fused import pool_normalise_kernel, tiling
from anna_kernels.reference import check_dtype, check_eps

CAPABILITIES = (80, 89, 90, 100, 120)
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
ENTRY = re.compile(r"\.entry (\w+)\(([^)]*)\)")


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A kernel for one GPU architecture: its PTX and how to launch it.

    The PTX's parameters are the kernel's own, in order, and nothing else. Pointers must be aligned
    to 16 bytes.
    """

    name: str
    ptx: str
    capability: int  # 90 is compute capability 9.0
    num_warps: int  # a block has num_warps * 32 threads
    shared_bytes: int  # dynamic shared memory


def compile_pool_normalise(
    dim: int, dtype: torch.dtype, capability: int, eps: float = 1e-12
) -> CompiledKernel:
    """Compile `fused.pool_normalise_kernel` for hidden states of one width and dtype.

    Args:
        dim: D, the width of the hidden states.
        dtype: Their dtype; bf16, fp16 or fp32.
        capability: Compute capability of the GPU times ten, one of CAPABILITIES.
        eps: Smallest norm divided by.

    Returns:
        A kernel to launch with grid (B,) and the parameters hidden, last, S, output.

    Raises:
        TypeError: The dtype is another.
        ValueError: dim, capability or eps is out of range.
    """
    check_dtype(dtype)
    check_eps(eps)
    if dim < 1:
        raise ValueError(f"expected dim of at least 1, found {dim}")
    block, num_warps = tiling(dim)
    return compile_kernel(
        pool_normalise_kernel,
        {"hidden_ptr": POINTERS[dtype], "last_ptr": "*i64", "S": "i32", "output_ptr": "*fp32"},
        {"D": dim, "EPS": float(eps), "BLOCK": block},
        capability,
        num_warps,
    )


def compile_kernel(
    kernel: Any,
    parameters: Mapping[str, str],
    constants: Mapping[str, int | float],
    capability: int,
    num_warps: int,
) -> CompiledKernel:
    """Compile any Triton kernel for one architecture.

    Args:
        kernel: The function under `triton.jit`: parameters first, then constants.
        parameters: Name to Triton type, such as "*bf16" or "i32", in the kernel's order.
        constants: Name to value of each `tl.constexpr`.
        capability: One of CAPABILITIES.
        num_warps: Warps in a block.

    Raises:
        ValueError: The capability is none of CAPABILITIES.
        RuntimeError: The kernel needs scratch memory, which nobody would pass, or is interpreted.
    """
    if capability not in CAPABILITIES:
        raise ValueError(f"expected a capability of {CAPABILITIES}, found {capability}")
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError(
            "expected a kernel to compile, found one for Triton's interpreter; "
            "start Python without TRITON_INTERPRET"
        )
    pointers = [index for index, kind in enumerate(parameters.values()) if kind.startswith("*")]
    source = ASTSource(
        fn=kernel,
        signature={**parameters, **dict.fromkeys(constants, "constexpr")},
        constexprs=dict(constants),
        # what lets it load 16 bytes at once
        attrs={(index,): [["tt.divisibility", 16]] for index in pointers},
    )
    options = {"num_warps": num_warps, "ptx_version": ptx_version(capability)}
    with triton.knobs.compilation.scope():
        # line information would carry this machine's paths into every engine
        triton.knobs.compilation.disable_line_info = True
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    metadata = compiled.metadata
    scratch = metadata.global_scratch_size, metadata.profile_scratch_size
    if any(scratch):
        raise RuntimeError(
            f"expected {metadata.name} to need no scratch memory, found {scratch[0]} global and "
            f"{scratch[1]} profile bytes; leave tensor descriptors and allocators out of it"
        )
    ptx = cut_scratch_pointers(compiled.asm["ptx"], len(parameters))
    return CompiledKernel(metadata.name, ptx, capability, metadata.num_warps, metadata.shared)


def ptx_version(capability: int) -> int:
    """Return the PTX version to write, times ten: an old one, as a driver refuses a newer one.

    Triton would write its own ptxas's newest. sm_120a begins with 8.7, which drivers take since
    CUDA 12.8.
    """
    return 87 if capability >= 100 else 86


def cut_scratch_pointers(ptx: str, count: int) -> str:
    """Cut the two pointers that Triton appends to a kernel's own `count` parameters.

    Raises:
        RuntimeError: There are not two, or the kernel reads one.
    """
    entry = ENTRY.search(ptx)
    declared = entry[2].split(",") if entry else []
    scratch = [declaration.split()[-1] for declaration in declared[count:]]
    if entry is None or len(scratch) != 2 or any(ptx.count(name) != 1 for name in scratch):
        raise RuntimeError(
            f"expected {count} parameters and two unused scratch pointers, found {declared}; "
            f"triton {triton.__version__} writes kernels in another way than 3.6 and 3.7"
        )
    return ptx[: entry.start(2)] + ",".join(declared[:count]) + "\n" + ptx[entry.end(2) :]
