"""int4: which layers it takes, how their weights are stored, and how well they are searched."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anna_export import quantise
from anna_export.artifact.folder import Artifact
from anna_export.graph.external_data import DATA_FILE
from anna_export.graph.names import CANONICAL, CPU
from anna_export.graph.passes.cpu_attention import DOMAIN, CpuAttention
from anna_export.graph.passes.matmul_nbits import MatMulNBits
from anna_export.quantise.calibration import ActivationStats, read_calibration
from anna_export.quantise.int4 import SCHEME, Int4Blocks, importance_of
from anna_export.spec import Precision, read_spec
from anna_export.weights.checkpoint import Checkpoint
from tests.support.types import MakeArtifact, MakeModel

FORMAT = Int4Blocks()


def stats_of(mean_square: torch.Tensor) -> ActivationStats:
    return ActivationStats(1.0, 1.0, 1.0, mean_square)


# -- the format --


def numbers_of(packed: np.ndarray) -> np.ndarray:
    """Return the 4-bit numbers of bytes one by one, the lower half of a byte first."""
    numbers = [half for byte in packed.reshape(-1) for half in (byte % 16, byte // 16)]
    return np.array(numbers).reshape(*packed.shape[:-1], -1)


@given(
    outputs=st.integers(1, 9),
    pairs=st.integers(1, 5),
    block=st.sampled_from([32, 64, 128]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=30)
def test_weight_of_4_bit_numbers_comes_back(
    outputs: int, pairs: int, block: int, seed: int
) -> None:
    rng, inputs = np.random.default_rng(seed), 2 * pairs * block
    codes = rng.integers(0, 16, (outputs, 2 * pairs, block))
    codes[..., 0], codes[..., -1] = 0, 15  # the whole range is used, so that it can be told
    zeros = rng.integers(0, 16, (outputs, 2 * pairs))
    scales = np.exp(rng.normal(0, 5, (outputs, 2 * pairs))).astype(np.float32)
    weight = ((codes - zeros[..., None]) * scales[..., None]).astype(np.float32)
    weight = weight.reshape(outputs, inputs)
    importance = torch.from_numpy(np.exp(rng.normal(0, 2, inputs)).astype(np.float32))
    stored = Int4Blocks(block).quantize(torch.from_numpy(weight), stats_of(importance))
    np.testing.assert_array_equal(numbers_of(stored[""].numpy()), codes.reshape(outputs, inputs))
    np.testing.assert_array_equal(numbers_of(stored["_zero"].numpy()), zeros)
    # a scale is a quotient of two sums
    np.testing.assert_allclose(stored["_scale"].numpy(), scales, rtol=1e-5)
    dequantized = Int4Blocks(block).dequantize(stored).numpy()
    np.testing.assert_allclose(dequantized, weight, rtol=1e-5)


@given(outputs=st.integers(1, 5), pairs=st.integers(1, 3), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_stored_tensors_are_what_the_layout_says(outputs: int, pairs: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(outputs, 64 * pairs)
    stored, layout = (
        FORMAT.quantize(weight, stats_of(torch.rand(64 * pairs))),
        FORMAT.layout(outputs, 64 * pairs),
    )
    assert stored.keys() == layout.keys()
    for suffix, (dtype, shape) in layout.items():
        assert stored[suffix].nbytes * 8 == np.prod(shape) * dtype.bitwidth


def test_a_weight_larger_than_a_chunk_is_stored_as_its_rows_are() -> None:
    torch.manual_seed(0)
    weight, stats = torch.randn(517, 1088), stats_of(torch.rand(1088))
    at_once = FORMAT.dequantize(FORMAT.quantize(weight, stats))
    rows = [FORMAT.dequantize(FORMAT.quantize(row[None], stats)) for row in weight[::73]]
    # sums over a block run in another order where there are fewer rows
    torch.testing.assert_close(at_once[::73], torch.cat(rows), rtol=1e-5, atol=0)


def test_storing_leaves_the_weight_as_it_was() -> None:
    weight = torch.randn(1, 64)
    before = weight.clone()
    for block in (32, 64, 128):  # of 64 inputs, the last makes one block
        Int4Blocks(block).quantize(weight, stats_of(torch.ones(64)))
        assert torch.equal(weight, before)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-38, -1e30])
def test_weight_of_one_value_comes_back(value: float) -> None:
    weight = torch.full((3, 64), value)
    stored = FORMAT.quantize(weight, stats_of(torch.rand(64)))
    assert (stored["_scale"] > 0).all()
    dequantized = FORMAT.dequantize(stored)
    # what is smaller than the smallest scale is zero
    torch.testing.assert_close(dequantized, weight, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("mean_square", [torch.zeros(64), torch.full((64,), 1e-38)])
def test_input_that_calibration_never_saw_at_work_is_stored_all_the_same(
    mean_square: torch.Tensor,
) -> None:
    weight = torch.randn(5, 64)
    dequantized = FORMAT.dequantize(FORMAT.quantize(weight, stats_of(mean_square)))
    # half a step of a range of at most 8 in 15 steps, and what searching may cut off
    assert (dequantized - weight).abs().max() <= 0.5


# -- better than rounding to nearest --


def nearest(weight: torch.Tensor, block: int) -> torch.Tensor:
    """Round to nearest over the whole range of each block, (out, in)."""
    blocks = weight.reshape(len(weight), -1, block)
    low = blocks.amin(dim=-1, keepdim=True).clamp(max=0)
    high = blocks.amax(dim=-1, keepdim=True).clamp(min=0)
    step = ((high - low) / 15).clamp(min=1e-30)
    zero = (-low / step).round()
    return ((((blocks / step).round() + zero).clamp(0, 15) - zero) * step).reshape(weight.shape)


def errors(
    weight: torch.Tensor, dequantized: torch.Tensor, importance: torch.Tensor, block: int
) -> torch.Tensor:
    """Return each block's weighted squared error, (out, blocks)."""
    squares = (dequantized - weight).double().square() * importance
    return squares.reshape(len(weight), -1, block).sum(dim=-1)


@given(
    scale=st.floats(-6, 6),
    tail=st.floats(0, 3),
    shift=st.floats(-30, 30),
    unlike=st.floats(0, 4),
    block=st.sampled_from([32, 128]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=40)
def test_no_block_is_worse_than_rounded_to_nearest(
    scale: float, tail: float, shift: float, unlike: float, block: int, seed: int
) -> None:
    torch.manual_seed(seed)
    weight = (torch.randn(37, 256) * (torch.randn(37, 256) * tail).exp() + shift) * 10**scale
    mean_square = (torch.randn(256) * unlike).exp()
    importance = importance_of(mean_square)
    linear = Int4Blocks(block)
    searched = errors(
        weight, linear.dequantize(linear.quantize(weight, stats_of(mean_square))), importance, block
    )
    truth = errors(weight, nearest(weight, block), importance, block)
    # gains are compared in fp32
    spare = 1e-5 * (weight.double().square() * importance).reshape(37, -1, block).sum(dim=-1)
    assert (searched <= truth + spare).all()


@pytest.mark.parametrize("block", [32, 128])
def test_search_takes_off_much_of_the_error_of_rounding_to_nearest(block: int) -> None:
    torch.manual_seed(0)
    weight, mean_square = torch.randn(64, 512), torch.randn(512).exp().square()
    importance, linear = importance_of(mean_square), Int4Blocks(block)
    dequantized = linear.dequantize(linear.quantize(weight, stats_of(mean_square)))
    gained = errors(weight, dequantized, importance, block).sum()
    # half to two thirds of it is left where inputs are so unlike
    assert gained <= 0.75 * errors(weight, nearest(weight, block), importance, block).sum()


# -- which layers --


@pytest.mark.parametrize(("inputs", "block"), [(64, 32), (320, 32), (32, 16), (96, 16)])
def test_blocks_are_halved_where_their_count_would_be_odd(inputs: int, block: int) -> None:
    stored = FORMAT.quantize(torch.randn(3, inputs), stats_of(torch.ones(inputs)))
    assert stored["_scale"].shape == (3, inputs // block)
    assert stored["_zero"].shape == (3, inputs // block // 2)


@pytest.mark.parametrize(("inputs", "skipped"), [(64, False), (96, False), (80, True), (40, True)])
def test_inputs_that_are_no_blocks_are_kept_and_why_is_one_line(inputs: int, skipped: bool) -> None:
    why = FORMAT.skip_reason(inputs, stats_of(torch.ones(inputs)))
    assert why == (f"{inputs} inputs are no multiple of 32, the block of int4" if skipped else None)


def kinds(graph: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph)


def test_layers_that_do_not_divide_stay_as_they_were_and_the_artifact_says_why(
    int4: Artifact, uneven: Path
) -> None:
    calibration, checkpoint = read_calibration(int4), Checkpoint.open(uneven)
    assert calibration is not None
    assert set(calibration.unquantized) == {
        f"layers.{layer}.attention_output" for layer in range(3)
    }
    for target in (CANONICAL, CPU):
        model = ir.load(int4.graph(target))
        products = {node.name for node in model.graph if node.op_type == "MatMul"}
        if target == CANONICAL:
            products = {
                name for name in products if f"{name}.weight_scale" not in model.graph.initializers
            }
        assert products == {f"layers.{layer}.self_attn.o_proj" for layer in range(3)}
        stored = model.graph.initializers["layers.1.self_attn.o_proj.weight"].const_value
        weight = checkpoint.read("layers.1.self_attn.o_proj.weight", torch.float32, transpose=True)
        assert stored is not None
        np.testing.assert_array_equal(stored.numpy(), weight.numpy())


def test_model_that_does_not_divide_at_all_is_exported_unquantised(
    make_model: MakeModel, make_artifact: MakeArtifact
) -> None:
    model = make_model(num_attention_heads=5, num_key_value_heads=1)
    artifact = make_artifact(model, Precision.INT4, max_tokens=256)
    calibration = read_calibration(artifact)
    assert calibration is not None and len(calibration.unquantized) == 3 * 4
    assert not kinds(ir.load(artifact.graph(CPU)))["MatMulNBits"]


# -- the graphs --


def test_onnx_checker_accepts_the_canonical_graph_of_standard_operators(int4: Artifact) -> None:
    onnx.checker.check_model(int4.graph(CANONICAL), full_check=True)
    model = ir.load(int4.graph(CANONICAL))
    assert {node.domain for node in model.graph} == {"", "anna"}
    assert kinds(model)["DequantizeLinear"] == 3 * 6


def test_every_quantised_layer_is_lowered_and_nothing_is_left_of_it(int4: Artifact) -> None:
    model = ir.load(int4.graph(CPU))
    assert kinds(model)["MatMulNBits"] == 3 * 6
    assert not {"DequantizeLinear", "Transpose"} & set(kinds(model))
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            assert node.domain == DOMAIN and node.attributes["accuracy_level"].as_int() == 4
            assert [value.name for value in node.inputs[1:] if value is not None] == [
                f"{node.name}.weight{suffix}" for suffix in FORMAT.layout(1, 64)
            ]


def test_both_graphs_read_the_same_bytes_of_the_data_file(int4: Artifact, uneven: Path) -> None:
    canonical, cpu = (ir.load(int4.graph(t)).graph.initializers for t in (CANONICAL, CPU))
    shared = {name for name, value in canonical.items() if value.dtype is ir.DataType.UINT4}
    assert len(shared) == 2 * 3 * 6
    placed = 0
    for name in shared:
        first, second = canonical[name].const_value, cpu[name].const_value
        assert first is not None and second is not None and second.dtype is ir.DataType.UINT8
        assert first.tobytes() == second.tobytes(), name
        if isinstance(first, ir.ExternalTensor) and isinstance(second, ir.ExternalTensor):
            assert (first.offset, first.length) == (second.offset, second.length)
            placed += 1
    assert (
        placed == 3 * 4
    )  # 1,024 bytes of key and value codes, and zero points, stay in the graphs
    # once on disk: were they there twice, it would be a half more
    spec = read_spec(uneven)
    stored = sum(value.const_value.nbytes for value in canonical.values() if value.const_value)
    size = (int4.folder / DATA_FILE).stat().st_size
    assert size <= stored + 4096 * 2 * len(spec.weight_shapes())


def test_embedding_table_is_stored_in_8_bits(int4: Artifact) -> None:
    for target in (CANONICAL, CPU):
        stored = ir.load(int4.graph(target)).graph.initializers["embed_tokens.weight"]
        assert stored.dtype is ir.DataType.INT8


def test_quantised_weight_takes_little_more_than_5_bits() -> None:
    layout = FORMAT.layout(4096, 14336)
    bits = sum(np.prod(shape, dtype=np.int64) * dtype.bitwidth for dtype, shape in layout.values())
    assert bits / (4096 * 14336) == 5.125


def test_pass_applied_twice_changes_nothing(int4: Artifact, uneven: Path) -> None:
    calibration = read_calibration(int4)
    fallback = SCHEME.graphs(Checkpoint.open(uneven), 64, calibration)[CPU]
    before = str(fallback.graph)
    for rewrite in SCHEME.cpu_passes:
        assert not rewrite(fallback).modified
    assert str(fallback.graph) == before


def test_lowering_for_a_cpu_leaves_the_canonical_graph_alone(int4: Artifact, uneven: Path) -> None:
    lowered = replace(SCHEME, cpu_passes=(CpuAttention(),))
    calibration, checkpoint = read_calibration(int4), Checkpoint.open(uneven)
    graphs = [scheme.graphs(checkpoint, 64, calibration)[CANONICAL] for scheme in (SCHEME, lowered)]
    assert str(graphs[0].graph) == str(graphs[1].graph)


def chain(
    codes: ir.DataType = ir.DataType.UINT4,
    inputs: int = 64,
    axis: int = 1,
    used_twice: bool = False,
) -> ir.Model:
    """A DequantizeLinear, Transpose and MatMul, as the pass looks for them or nearly so."""

    def stored(name: str, dtype: ir.DataType, *shape: int) -> ir.Value:
        tensor = ir.Tensor(np.ones(shape, dtype.numpy()), dtype=dtype, name=name)
        return ir.val(name, dtype=dtype, shape=shape, const_value=tensor)

    blocks = (8, inputs // 32) if axis == 1 else (1, inputs)
    if axis == 0:
        weight = stored("w", codes, 32, inputs)
    else:
        weight = stored("w", codes, 8, inputs)
    values = [weight, stored("s", ir.DataType.FLOAT, *blocks), stored("z", codes, *blocks)]
    tape = ir.tape.Tape()
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["tokens", inputs])
    dequantized = tape.op("DequantizeLinear", values, {"axis": axis, "block_size": 32})
    turned = tape.op("Transpose", [dequantized], {"perm": [1, 0]})
    outputs = [tape.op("MatMul", [x, turned])]
    if used_twice:
        outputs.append(tape.op("Identity", [turned]))
    outputs = [tape.op("Identity", [value]) for value in outputs]
    graph = ir.Graph(
        [x], outputs, nodes=tape.nodes, initializers=values, opset_imports={"": 23}, name="chain"
    )
    return ir.Model(graph, ir_version=11)


def test_chain_is_lowered() -> None:
    model = chain()
    assert MatMulNBits()(model).modified
    assert kinds(model) == {"MatMulNBits": 1, "Identity": 1}


@pytest.mark.parametrize(
    "changes",
    [{"codes": ir.DataType.INT4}, {"codes": ir.DataType.UINT8}, {"axis": 0}, {"used_twice": True}],
    ids=str,
)
def test_chain_that_only_looks_like_it_stays(changes: dict[str, object]) -> None:
    model = chain(**changes)  # type: ignore[arg-type]
    assert not MatMulNBits()(model).modified
    assert "MatMulNBits" not in kinds(model)


def test_odd_count_of_blocks_is_refused() -> None:
    with pytest.raises(ir.passes.PreconditionError, match=r"even number of blocks in .*found 3"):
        MatMulNBits()(chain(inputs=96))


# -- the scheme --


def test_scheme_is_that_of_the_precision() -> None:
    scheme = quantise.load(Precision.INT4)
    assert scheme is SCHEME and scheme.precision is Precision.INT4
    assert (scheme.thresholds.max_loss, scheme.thresholds.batch1_min_cosine) == (0.05, 0.9999)
