"""fp8: E4M3 Q/DQ on every linear layer but those kept, and nothing else."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import safetensors.torch
import torch

from anna_export import quantise
from anna_export.artifact.folder import Artifact
from anna_export.errors import InputError
from anna_export.graph.builder import build_graph
from anna_export.graph.names import CANONICAL, CPU
from anna_export.graph.passes.compute_in_fp32 import NARROW
from anna_export.graph.tensors import IR_DTYPES
from anna_export.quantise.calibration import ActivationStats, read_calibration
from anna_export.quantise.fp8 import SPAN, Fp8Static
from anna_export.quantise.linear import QuantiseLinear
from anna_export.spec import EMBEDDING_WEIGHT, LINEAR_INPUTS, Precision, read_spec
from anna_export.weights.checkpoint import Checkpoint
from tests.support.types import Fp8, MakeArtifact

OpenGraph = Callable[..., ir.Model]
HIGH_PRECISIONS = tuple(IR_DTYPES)
E4M3 = ir.DataType.FLOAT8E4M3FN


@pytest.fixture(scope="module")
def graph(fp8: Fp8) -> OpenGraph:
    def load(high_precision: Precision = Precision.BF16, target: str = CANONICAL) -> ir.Model:
        return ir.load(fp8(high_precision).graph(target))

    return load


def nodes(model: ir.Model, kind: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == kind]


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def producer(node: ir.Node, index: int) -> ir.Node:
    """Return the node that gives one of a node's inputs."""
    value = node.inputs[index]
    assert value is not None
    node_before = value.producer()
    assert node_before is not None
    return node_before


def quantised(model: ir.Model) -> list[ir.Node]:
    """Return the products by a restored weight."""
    products = nodes(model, "MatMul")
    return [node for node in products if node.inputs[1] and not node.inputs[1].is_initializer()]


# -- the graph --


@pytest.mark.parametrize("target", [CANONICAL, CPU])
@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_every_linear_layer_is_quantised(
    graph: OpenGraph, sharp: Path, high_precision: Precision, target: str
) -> None:
    model = graph(high_precision, target)
    modules = [node.name or "" for node in quantised(model)]
    assert sorted(modules) == sorted(read_spec(sharp).linear_modules())
    assert len(nodes(model, "MatMul")) == len(modules)


def test_layers_that_share_an_input_share_one_pair(graph: OpenGraph) -> None:
    model = graph()
    sharing: dict[ir.Node, set[str]] = {}
    for product in nodes(model, "MatMul"):
        sharing.setdefault(producer(product, 0), set()).add(product.name or "")
    expected = [
        {f"layers.{layer}.{module}" for module in modules}
        for layer in range(2)
        for modules in LINEAR_INPUTS.values()
    ]
    # in the last layer, the query is computed for the last token alone
    query, *others = LINEAR_INPUTS["attention_input"]
    last = [{query}, set(others), *map(set, list(LINEAR_INPUTS.values())[1:])]
    expected += [{f"layers.2.{module}" for module in modules} for modules in last]
    assert sorted(map(sorted, sharing.values())) == sorted(map(sorted, expected))
    assert len(nodes(model, "QuantizeLinear")) == len(expected)


@pytest.mark.parametrize("target", [CANONICAL, CPU])
@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_weights_are_stored_in_e4m3_and_never_quantised_in_the_graph(
    graph: OpenGraph, high_precision: Precision, target: str
) -> None:
    model = graph(high_precision, target)
    stored = {name: v for name, v in model.graph.initializers.items() if "_proj" in (name or "")}
    codes = {name for name, value in stored.items() if value.dtype is E4M3}
    assert len(codes) == 3 * 7
    assert stored.keys() - codes == {f"{name}_scale" for name in codes}
    scales = {value.dtype for name, value in stored.items() if name not in codes}
    assert scales == {IR_DTYPES[high_precision]}
    for node in nodes(model, "QuantizeLinear"):
        assert not any(value in node.inputs for value in stored.values())


def test_each_output_of_a_weight_has_a_scale(graph: OpenGraph) -> None:
    model = graph()
    shapes = {name: tuple(v.shape or ()) for name, v in model.graph.initializers.items()}
    # three sizes that differ: 40 in, 72 inside, 2 heads of 16
    assert shapes["layers.0.mlp.up_proj.weight"] == (40, 72)
    assert shapes["layers.0.mlp.up_proj.weight_scale"] == (72,)
    assert shapes["layers.0.self_attn.k_proj.weight"] == (40, 32)
    assert shapes["layers.0.self_attn.k_proj.weight_scale"] == (32,)
    for node in quantised(model):
        dequantized = producer(node, 1)
        assert dequantized.op_type == "DequantizeLinear"
        assert dequantized.attributes["axis"].as_int() == 1
        names = [value.name for value in dequantized.inputs if value is not None]
        assert names == [f"{node.name}.weight", f"{node.name}.weight_scale"]


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_an_input_has_one_static_scale_in_the_high_precision_type(
    fp8: Fp8, graph: OpenGraph, high_precision: Precision
) -> None:
    calibration, model = read_calibration(fp8(high_precision)), graph(high_precision)
    assert calibration is not None
    for node in nodes(model, "QuantizeLinear"):
        _, scale, zero = node.inputs
        assert scale is not None and zero is not None and scale.const_value is not None
        assert (scale.dtype, scale.shape) == (IR_DTYPES[high_precision], ir.Shape([]))
        assert (zero.dtype, zero.shape) == (E4M3, ir.Shape([]))
        clip_amax = calibration.inputs[(scale.name or "").removesuffix(".scale")].clip_amax
        # bf16 has 8 bits
        assert float(scale.const_value.numpy()) == pytest.approx(clip_amax / 448, rel=2**-8)
        (use,) = node.outputs[0].uses()
        assert use.node.op_type == "DequantizeLinear" and use.node.inputs[1] is scale


def test_attention_stays_in_high_precision(graph: OpenGraph) -> None:
    attention = nodes(graph(), "PrefixAttention")
    assert len(attention) == 3
    for node in attention:
        # queries, keys and values as they are, and so is what comes out until o_proj rounds it
        givers = [producer(node, index).op_type for index in range(3)]
        assert givers == ["RotaryEmbedding", "RotaryEmbedding", "MatMul"]
        # the prefix, which is in fp32, in the same type
        assert [producer(node, index).op_type for index in (3, 4)] == ["Cast", "Cast"]
        assert [use.node.op_type for use in node.outputs[0].uses()] == ["QuantizeLinear"]


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_nothing_but_the_linear_layers_differs_from_the_plain_graph(
    graph: OpenGraph, sharp: Path, high_precision: Precision
) -> None:
    counted = kinds(graph(high_precision))
    del counted["QuantizeLinear"], counted["DequantizeLinear"]
    assert counted == kinds(build_graph(Checkpoint.open(sharp), high_precision, 64))


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_onnx_checker_accepts_the_canonical_graph(fp8: Fp8, high_precision: Precision) -> None:
    onnx.checker.check_model(fp8(high_precision).graph(CANONICAL), full_check=True)


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_fallback_graph_computes_in_fp32_alone(graph: OpenGraph, high_precision: Precision) -> None:
    model = graph(high_precision, CPU)
    narrow = {value for value in model.graph.initializers.values() if value.dtype in NARROW}
    assert bool(narrow) == (high_precision is not Precision.FP32)
    if narrow:  # the table of tokens is cast after the look-up
        (lookup,) = model.graph.initializers[EMBEDDING_WEIGHT].uses()
        narrow |= {lookup.node.outputs[0]}
    for node in model.graph:
        if node.op_type not in ("Cast", "Gather"):
            assert not narrow & set(node.inputs), node.op_type
        if node.op_type == "Cast":
            assert node.attributes["to"].as_int() not in NARROW


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_pass_applied_twice_changes_nothing(
    fp8: Fp8, sharp: Path, high_precision: Precision
) -> None:
    scheme, calibration = (
        quantise.load(Precision.FP8, high_precision),
        read_calibration(fp8(high_precision)),
    )
    fallback = scheme.graphs(Checkpoint.open(sharp), 64, calibration)[CPU]
    before = str(fallback.graph)
    for rewrite in scheme.cpu_passes:
        assert not rewrite(fallback).modified
    assert str(fallback.graph) == before


def test_graph_that_is_quantised_already_is_refused(fp8: Fp8, sharp: Path) -> None:
    calibration, checkpoint = read_calibration(fp8(Precision.BF16)), Checkpoint.open(sharp)
    assert calibration is not None
    quantised_once = quantise.load(Precision.FP8).graphs(checkpoint, 64, calibration)[CANONICAL]
    again = QuantiseLinear(Fp8Static(Precision.BF16), checkpoint, calibration)
    with pytest.raises(ir.passes.PreconditionError, match=r"a stored weight named layers\.0\."):
        again(quantised_once)


# -- massive activations --


@pytest.fixture(scope="module")
def massive(
    sharp: Path, make_artifact: MakeArtifact, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """The model with one enormous channel in front of a down_proj, which takes it back."""
    folder = tmp_path_factory.mktemp("massive") / "base"
    shutil.copytree(sharp, folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["layers.1.mlp.up_proj.weight"][5] *= 2e6
    weights["layers.1.mlp.down_proj.weight"][:, 5] /= 2e6
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return make_artifact(folder, Precision.FP8, max_tokens=256, max_loss=1)


def test_massive_activation_is_found_and_its_figures_are_named(massive: Artifact) -> None:
    calibration, manifest = read_calibration(massive), massive.manifest.quantised
    assert calibration is not None and manifest is not None
    assert list(calibration.unquantized) == ["layers.1.mlp_inner"]
    assert manifest.unquantized == calibration.unquantized
    stats, why = (
        calibration.inputs["layers.1.mlp_inner"],
        calibration.unquantized["layers.1.mlp_inner"],
    )
    assert why.startswith("massive activation: ") and "\n" not in why
    assert f"{stats.amax:.4g} is {stats.amax / stats.median:,.0f} times the median" in why
    assert "layers.1.mlp.down_proj" not in calibration.snr_db
    assert "layers.0.mlp.down_proj" in calibration.snr_db


def test_kept_layers_product_stays_as_it_was(sharp: Path, massive: Artifact) -> None:
    model = ir.load(massive.graph(CANONICAL))
    plain = build_graph(Checkpoint.open(sharp), Precision.BF16, 64)
    name = "layers.1.mlp.down_proj"
    expected = read_spec(sharp).linear_modules().keys() - {name}
    assert {node.name for node in quantised(model)} == expected
    unquantized, before = (
        next(node for node in graph.graph if node.name == name) for graph in (model, plain)
    )
    assert producer(unquantized, 0).op_type == producer(before, 0).op_type == "Mul"
    for node in (unquantized, before):
        weight = node.inputs[1]
        assert weight is not None and weight.is_initializer()
        assert (weight.name, weight.dtype) == (f"{name}.weight", ir.DataType.BFLOAT16)


@pytest.mark.parametrize(
    ("amax", "median", "skipped"),
    [
        (28672.0, 1.0, False),
        (28673.0, 1.0, True),
        (1.0, 1e-5, True),
        (1e-3, 0.0, True),
        (0.0, 0.0, False),
    ],
)
def test_input_is_kept_where_the_largest_at_448_takes_the_median_below_the_normal_numbers(
    amax: float, median: float, skipped: bool
) -> None:
    why = Fp8Static(Precision.BF16).skip_reason(40, ActivationStats(amax, median, clip_amax=amax))
    assert (why is not None) == skipped


def test_span_of_normal_numbers_is_that_of_the_type() -> None:
    info = torch.finfo(torch.float8_e4m3fn)
    assert info.max / info.smallest_normal == SPAN == 28672


def test_narrower_range_does_not_hide_a_massive_activation() -> None:
    stats = ActivationStats(amax=1e6, median=1.0, clip_amax=10.0)
    assert Fp8Static(Precision.BF16).skip_reason(40, stats) is not None


# -- the high-precision type --


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_high_precision_type_is_that_of_the_scheme(high_precision: Precision) -> None:
    scheme = quantise.load(Precision.FP8, high_precision)
    assert (scheme.precision, scheme.compute_dtype) == (Precision.FP8, high_precision)
    assert scheme.linear == Fp8Static(high_precision)


def test_high_precision_type_is_bf16_by_default() -> None:
    assert quantise.load(Precision.FP8) == quantise.load(Precision.FP8, Precision.BF16)


@pytest.mark.parametrize("precision", [p for p in Precision if p is not Precision.FP8])
def test_no_other_precision_takes_a_high_precision_type(precision: Precision) -> None:
    with pytest.raises(InputError, match=f"`high_precision` with fp8, found it with {precision};"):
        quantise.load(precision, Precision.BF16)
