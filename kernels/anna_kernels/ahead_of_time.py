"""Compile the kernels to PTX with no GPU present, in the form TensorRT's plugins can launch."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from anna_kernels.kernel import Variant, last_token_pool_normalise_kernel
from anna_kernels.mean_kernel import MeanVariant, slice_mean_kernel, slice_sums_kernel
from anna_kernels.pooling import INDEX_DTYPES, check_dtype, check_eps

CAPABILITIES = (80, 86, 89, 90, 100, 120)
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


@dataclass(frozen=True, slots=True)
class Assembled:
    """What an assembler made of a kernel for one architecture."""

    registers: int  # a thread
    spilled_bytes: int  # stored and loaded again, a thread
    cubin: bytes


def compile_pooling(variant: Variant, capability: int) -> CompiledKernel:
    """Compile the pooling kernel.

    Args:
        variant: What is compiled into it.
        capability: Compute capability of the GPU times ten, one of CAPABILITIES.

    Returns:
        A kernel to launch with grid (B,) and the parameters hidden, last, the norm's weight where
        the variant has it, S and vectors.

    Raises:
        TypeError: A dtype is none of those that the kernel reads.
        ValueError: dim, capability or an eps is out of range.
    """
    check_dtype("hidden", variant.dtype)
    check_eps("eps", variant.eps)
    if variant.weight_dtype is not None:
        check_dtype("norm.weight", variant.weight_dtype)
        check_eps("norm.eps", variant.norm_eps)
    if variant.dim < 1:
        raise ValueError(f"expected dim of at least 1, found {variant.dim}")
    return compile_kernel(
        last_token_pool_normalise_kernel,
        variant.parameters(),
        variant.constants(),
        capability,
        variant.num_warps,
    )


def compile_mean(variant: MeanVariant, capability: int) -> tuple[CompiledKernel, CompiledKernel]:
    """Compile both launches of the mean: grids and parameters are `mean_kernel`'s.

    Raises:
        TypeError: A dtype is none of those that the kernel reads.
        ValueError: dim or capability is out of range.
    """
    check_dtype("hidden", variant.dtype)
    check_dtype("start", variant.bound_dtype, INDEX_DTYPES)
    if variant.dim < 1:
        raise ValueError(f"expected dim of at least 1, found {variant.dim}")
    first, second = zip(variant.parameters(), variant.constants(), variant.num_warps, strict=True)
    return (
        compile_kernel(slice_sums_kernel, first[0], first[1], capability, first[2]),
        compile_kernel(slice_mean_kernel, second[0], second[1], capability, second[2]),
    )


def compile_kernel(
    kernel: Any,
    parameters: Mapping[str, str | None],
    constants: Mapping[str, int | float],
    capability: int,
    num_warps: int,
) -> CompiledKernel:
    """Compile any Triton kernel for one architecture.

    Args:
        kernel: The function under `triton.jit`: parameters first, then constants.
        parameters: Name to Triton type, such as "*bf16" or "i32", in the kernel's order; None
            for a pointer that is not passed.
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
    absent = dict.fromkeys(name for name, kind in parameters.items() if kind is None)
    passed = [kind for kind in parameters.values() if kind is not None]
    pointers = [index for index, kind in enumerate(parameters.values()) if kind and kind[0] == "*"]
    source = ASTSource(
        fn=kernel,
        signature={**parameters, **dict.fromkeys([*absent, *constants], "constexpr")},
        constexprs={**absent, **constants},
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
    ptx = cut_scratch_pointers(compiled.asm["ptx"], len(passed))
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


def assemble(compiled: CompiledKernel) -> Assembled:
    """Assemble a kernel's PTX with the ptxas that Triton carries, warnings being errors.

    Raises:
        RuntimeError: If ptxas refuses it.
    """
    capability = compiled.capability
    tools = triton.knobs.nvidia
    ptxas = tools.ptxas_blackwell if capability >= 100 else tools.ptxas
    target = f"--gpu-name=sm_{capability}" + ("a" if capability >= 90 else "")
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(compiled.ptx)
        command = [ptxas.path, "--verbose", "--warning-as-error", target, str(source)]
        run = subprocess.run(
            [*command, "-o", str(cubin)], capture_output=True, text=True, check=False
        )
        if run.returncode:
            raise RuntimeError(
                f"expected ptxas to take {compiled.name} for sm_{capability}, found: {run.stderr}"
            )
        registers = re.findall(r"Used (\d+) registers", run.stderr)
        spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", run.stderr)
        return Assembled(int(registers[0]), sum(map(int, spilled)), cubin.read_bytes())
