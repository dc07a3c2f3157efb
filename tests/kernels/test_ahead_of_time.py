"""PTX compiled with no GPU: its parameters, its version, and that an assembler takes it."""

import re
from dataclasses import replace

import pytest
import torch
from anna_kernels.pooling import DTYPES

pytest.importorskip("triton", reason="compiling ahead of time needs triton: Linux on x86_64")
import triton
import triton.language as tl
from anna_kernels.ahead_of_time import (
    CAPABILITIES,
    ENTRY,
    CompiledKernel,
    assemble,
    compile_kernel,
    compile_mean,
    compile_pooling,
    cut_scratch_pointers,
)
from anna_kernels.kernel import MAX_BLOCK, Variant, last_token_pool_normalise_kernel
from anna_kernels.mean_kernel import MeanVariant
from triton.runtime.interpreter import InterpretedFunction

# Odd, that of Mistral, and longer than one block
DIMS = [129, 4096, MAX_BLOCK + 77]

for_every_gpu = pytest.mark.parametrize("capability", CAPABILITIES)
of_every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def parameter_types(ptx: str) -> list[str]:
    entry = ENTRY.search(ptx)
    assert entry
    return [re.split(r"\s+", declared.strip())[1] for declared in entry[2].split(",")]


@for_every_gpu
@of_every_dtype
def test_parameters_are_inputs_then_an_int32_then_the_output(
    capability: int, dtype: torch.dtype
) -> None:
    compiled = compile_pooling(Variant(129, dtype), capability)
    assert parameter_types(compiled.ptx) == [".u64", ".u64", ".u32", ".u64"]


@for_every_gpu
def test_ptx_names_its_architecture_and_a_version_old_drivers_take(capability: int) -> None:
    ptx = compile_pooling(Variant(129, torch.bfloat16), capability).ptx
    suffix = "a" if capability >= 90 else ""
    assert re.findall(r"^\.target (\w+)$", ptx, re.MULTILINE) == [f"sm_{capability}{suffix}"]
    (version,) = re.findall(r"^\.version (\S+)$", ptx, re.MULTILINE)
    # driver 580 takes 9.0; the older the version, the more drivers take it
    assert version == ("8.7" if capability >= 100 else "8.6")


VARIANTS = {
    **{f"{dim} {dtype}": Variant(dim, dtype) for dim, dtype in zip(DIMS, DTYPES, strict=True)},
    "normed": Variant(4096, torch.bfloat16, weight_dtype=torch.bfloat16, norm_eps=1e-5),
    "normed, fp32 weight": Variant(4096, torch.float16, torch.int32, torch.float32, 1e-5),
}


@for_every_gpu
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_assembler_takes_the_ptx_without_warnings_or_spills(
    variant: Variant, capability: int
) -> None:
    compiled = compile_pooling(variant, capability)
    assembled = assemble(compiled)
    assert assembled.spilled_bytes == 0
    # a multiprocessor's 65,536 registers hold at least one block
    assert 0 < assembled.registers * 32 * compiled.num_warps <= 65_536
    assert compiled.name.encode() in assembled.cubin


@for_every_gpu
@pytest.mark.parametrize(("dim", "dtype"), zip(DIMS, DTYPES, strict=True))
def test_assembler_takes_both_launches_of_the_mean(
    dim: int, dtype: torch.dtype, capability: int
) -> None:
    sums, means = compile_mean(MeanVariant(dim, dtype), capability)
    assert parameter_types(sums.ptx) == [".u64"] * 3 + [".u32"] * 3 + [".u64"]
    assert parameter_types(means.ptx) == [".u64"] * 3 + [".u32"] * 2 + [".u64"]
    for compiled in (sums, means):
        assert assemble(compiled).spilled_bytes == 0
        assert not re.search(r"\b(atom|red)\.", compiled.ptx)


def test_what_the_assembler_refuses_is_an_error() -> None:
    compiled = compile_pooling(Variant(129, torch.float32), 80)
    with pytest.raises(RuntimeError, match=r"expected ptxas to take .* for sm_80, found"):
        assemble(replace(compiled, ptx=compiled.ptx.replace("ld.global", "ld.nowhere")))


def test_weight_of_the_norm_stands_behind_the_last_tokens() -> None:
    normed = Variant(129, torch.bfloat16, weight_dtype=torch.float32, norm_eps=1e-5)
    types = parameter_types(compile_pooling(normed, 90).ptx)
    assert types == [".u64"] * 3 + [".u32", ".u64"]


@of_every_dtype
@pytest.mark.parametrize("dim", [129, 1024, MAX_BLOCK])
def test_row_that_fits_is_read_once(dim: int, dtype: torch.dtype) -> None:
    compiled = compile_pooling(Variant(dim, dtype), 90)
    loads = re.findall(r"ld\.global(?:\.v(\d))?\.b(\d+)", compiled.ptx)
    loaded = [int(count or 1) * int(bits) // 8 for count, bits in loads]
    # each thread reads its share of a block, and the 8 bytes of its row's index
    block = triton.next_power_of_2(dim) * dtype.itemsize
    assert sum(loaded) == 8 + block // (32 * compiled.num_warps)


@of_every_dtype
def test_aligned_rows_move_16_bytes_at_once(dtype: torch.dtype) -> None:
    ptx = compile_pooling(Variant(4096, dtype), 90).ptx
    assert set(re.findall(r"(?:ld|st)\.global\.(v\d\.b\d+)", ptx)) == {"v4.b32"}


def test_norm_of_nan_stays_nan() -> None:
    # a plain maximum drops a NaN on a GPU, and keeps it in the interpreter
    ptx = compile_pooling(Variant(129, torch.bfloat16), 90).ptx
    assert "max.NaN.f32" in ptx and "max.f32" not in ptx


def test_sums_of_rows_use_no_atomics() -> None:
    ptx = compile_pooling(Variant(DIMS[-1], torch.bfloat16), 90).ptx
    assert not re.search(r"\b(atom|red)\.", ptx)


def test_launch_fits_what_every_gpu_grants_unasked() -> None:
    for variant in VARIANTS.values():
        compiled = compile_pooling(variant, 80)
        assert 1 <= compiled.num_warps <= 32 and compiled.shared_bytes <= 48 * 1024
        assert f".reqntid {32 * compiled.num_warps}" in compiled.ptx


def test_ptx_holds_no_path_of_this_machine() -> None:
    ptx = compile_pooling(Variant(129, torch.bfloat16), 90).ptx
    assert ".file" not in ptx and ".section" not in ptx


def test_eps_is_compiled_in() -> None:
    # the bits of 0.5 in float32
    assert "0f3F000000" in compile_pooling(Variant(129, torch.float32, eps=0.5), 90).ptx
    assert "0f3F000000" not in compile_pooling(Variant(129, torch.float32), 90).ptx


# -- what is refused --


@pytest.mark.parametrize(
    ("dim", "capability", "eps", "message"),
    [
        (129, 75, 1e-12, r"capability of \(80, 86, 89, 90, 100, 120\), found 75"),
        (0, 90, 1e-12, "expected dim of at least 1, found 0"),
        (129, 90, 0.0, r"expected eps between 1\.2e-38 and .* found 0.0"),
    ],
)
def test_value_out_of_range_is_refused(dim: int, capability: int, eps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_pooling(Variant(dim, torch.bfloat16, eps=eps), capability)


def test_dtype_that_no_kernel_reads_is_refused() -> None:
    with pytest.raises(TypeError, match=r"found torch\.float64"):
        compile_pooling(Variant(129, torch.float64), 90)


@triton.jit
def descriptor_kernel(input_ptr: tl.tensor, output_ptr: tl.tensor, D: tl.constexpr) -> None:
    descriptor = tl.make_tensor_descriptor(input_ptr, [D], [1], [D])
    tl.store(output_ptr + tl.arange(0, D), descriptor.load([0]))


def compile_descriptor_kernel(capability: int) -> CompiledKernel:
    pointers = {"input_ptr": "*fp32", "output_ptr": "*fp32"}
    return compile_kernel(descriptor_kernel, pointers, {"D": 64}, capability, num_warps=1)


def test_kernel_that_needs_scratch_memory_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"descriptor_kernel to need no scratch .* [1-9]\d* glo"):
        compile_descriptor_kernel(90)


def test_other_kernels_compile_as_well() -> None:
    # before sm_90 a descriptor is plain pointers and needs no scratch
    assert parameter_types(compile_descriptor_kernel(80).ptx) == [".u64", ".u64"]


@pytest.mark.parametrize(
    "ptx",
    [
        ".visible .entry k(\n.param .u64 k_param_0\n)\n{ ret; }",
        ".visible .entry k(\n.param .u64 k_param_0,\n.param .u64 k_param_1\n)\n{ ret; }",
        ".visible .entry k(\n.param .u64 k_param_0,\n.param .u64 k_param_1,\n.param .u64 k_param_2"
        "\n)\n{ ld.param.u64 %rd1, [k_param_2]; }",
        ".visible .func k()\n{ ret; }",
    ],
    ids=["no scratch", "one", "one in use", "no entry"],
)
def test_unknown_parameter_list_is_refused(ptx: str) -> None:
    with pytest.raises(RuntimeError, match="expected 1 parameters and two unused scratch pointers"):
        cut_scratch_pointers(ptx, 1)


def test_kernel_for_the_interpreter_is_refused() -> None:
    interpreted = InterpretedFunction(last_token_pool_normalise_kernel.fn)
    with pytest.raises(RuntimeError, match="start Python without TRITON_INTERPRET"):
        compile_kernel(interpreted, {}, {}, 90, num_warps=1)
