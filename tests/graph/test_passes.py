"""Passes over the canonical graph: each rule, twice the same, and no graph that is not ours."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from anna_export import quantise
from anna_export.graph.builder import OPSET, build_graph
from anna_export.graph.names import CANONICAL, CPU
from anna_export.graph.passes.compute_in_fp32 import NARROW, ComputeInFp32
from anna_export.graph.passes.cpu_attention import CpuAttention
from anna_export.graph.tensors import IR_DTYPES
from anna_export.reference.load import open_reference
from anna_export.spec import Precision
from anna_export.text.batch import TokenBatch
from anna_export.weights.checkpoint import Checkpoint
from tests.support.types import MakeArtifact, MakeBatch, MakeModel, RunGraph

Build = Callable[[Precision], ir.Model]
HALVES = (Precision.BF16, Precision.FP16)
TORCH = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


@pytest.fixture(scope="module")
def windowed(make_model: MakeModel) -> Path:
    return make_model(sliding_window=8, initializer_range=0.2)


@pytest.fixture(scope="module")
def build(base: Path) -> Build:
    return lambda precision: build_graph(Checkpoint.open(base), precision, 64)


def nodes(model: ir.Model, kind: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == kind]


# -- CpuAttention --


def branches(model: ir.Model) -> list[dict[str, ir.Graph]]:
    """Return the branches of every attention node, in the order of layers."""
    return [
        {name: attribute.as_graph() for name, attribute in node.attributes.items()}
        for node in nodes(model, "If")
    ]


def kinds(graph: ir.Graph) -> set[str]:
    return {node.op_type for node in graph}


def grouped(graph: ir.Graph) -> ir.Node:
    (node,) = (node for node in graph if node.op_type == "GroupQueryAttention")
    return node


def test_every_attention_gets_a_branch_of_one_operator_and_one_behind_a_prefix(
    build: Build,
) -> None:
    model = build(Precision.FP32)
    names = [node.name for node in nodes(model, "PrefixAttention")]
    assert CpuAttention()(model).modified
    assert [node.name for node in nodes(model, "If")] == names and len(names) == 3
    assert not nodes(model, "PrefixAttention") and len(model.functions) == 1
    *causal, last = branches(model)
    for forms in causal:
        assert kinds(forms["then_branch"]) == {"Expand", "GroupQueryAttention"}
        attributes = grouped(forms["then_branch"]).attributes
        assert {name: attribute.value for name, attribute in attributes.items()} == {
            "num_heads": 6,
            "kv_num_heads": 2,
            "scale": pytest.approx(16**-0.5),
            "local_window_size": -1,
        }
    # the last layer's single query
    assert kinds(last["then_branch"]) == {"Attention"}
    for forms in (*causal, last):
        copied = {"Expand", "Attention", "GroupQueryAttention"}
        assert not copied & kinds(forms["else_branch"])  # no text gets a copy of the prefix
        assert "Softmax" not in kinds(forms["else_branch"])


def test_names_are_one_space_over_all_branches(build: Build) -> None:
    model = build(Precision.FP32)
    CpuAttention()(model)
    bodies = [model.graph, *(graph for forms in branches(model) for graph in forms.values())]
    names = [value.name for body in bodies for node in body for value in node.outputs]
    assert len(names) == len(set(names))


def test_window_of_the_call_becomes_the_operators_own(windowed: Path) -> None:
    model = build_graph(Checkpoint.open(windowed), Precision.FP32, 64)
    masks = {node.inputs[5] for node in nodes(model, "PrefixAttention")[:-1]}
    CpuAttention()(model)
    windows = [
        grouped(forms["then_branch"]).attributes["local_window_size"].as_int()
        for forms in branches(model)[:-1]
    ]
    assert windows == [8, 8]
    # the mask's arithmetic went with it; the last layer's query has one of its own
    assert not masks & {value for node in model.graph for value in node.outputs}
    assert len(nodes(model, "Less")) == 1


def test_window_that_no_sequence_reaches_needs_none(windowed: Path) -> None:
    model = build_graph(Checkpoint.open(windowed), Precision.FP32, 8)
    CpuAttention()(model)
    forms = [grouped(forms["then_branch"]) for forms in branches(model)[:-1]]
    assert {node.attributes["local_window_size"].as_int() for node in forms} == {-1}
    assert not nodes(model, "Less")


@pytest.fixture(scope="module")
def attended(make_artifact: MakeArtifact) -> Callable[[Path, str, TokenBatch], list[np.ndarray]]:
    """Runs a model's graph for what its layers but the last attend to."""

    def run(model: Path, target: str, batch: TokenBatch) -> list[np.ndarray]:
        path = make_artifact(model).graph(target)
        proto = onnx.load(path, load_external_data=False)
        names = [f"layers.{layer}.self_attn.attention" for layer in range(2)]
        outputs = [node.output[0] for node in proto.graph.node if node.name in names]
        for name in outputs:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
        opened = path.with_name(f"opened.{target}.onnx")
        onnx.save(proto, opened)
        session = onnxruntime.InferenceSession(opened, providers=["CPUExecutionProvider"])
        return session.run(outputs, {"input_ids": batch.ids, "attention_mask": batch.mask})

    return run


@pytest.mark.parametrize("lengths", [(1,), (1, 17, 8), (9, 9), (33, 1)], ids=str)
def test_grouped_attention_is_the_standard_operators_at_every_position(
    windowed: Path,
    attended: Callable[[Path, str, TokenBatch], list[np.ndarray]],
    make_batch: MakeBatch,
    lengths: tuple[int, ...],
) -> None:
    batch = make_batch(*lengths)
    expected, vectors = (attended(windowed, target, batch) for target in (CANONICAL, CPU))
    for first, second in zip(expected, vectors, strict=True):
        assert first.shape == (*batch.ids.shape, 96)
        # padded positions too; fp32, values of about 1: only the order of sums differs
        np.testing.assert_allclose(second, first, rtol=0, atol=5e-6)


def test_head_dim_that_the_operator_does_not_take_keeps_the_standard_one(
    make_model: MakeModel, make_artifact: MakeArtifact, run_graph: RunGraph, make_batch: MakeBatch
) -> None:
    path = make_model(head_dim=6, initializer_range=0.2)
    model = build_graph(Checkpoint.open(path), Precision.FP32, 64)
    CpuAttention()(model)
    assert [kinds(forms["then_branch"]) for forms in branches(model)] == 3 * [{"Attention"}]
    batch = make_batch(17, 5)
    forms = run_graph(make_artifact(path), CPU, batch)
    # fp32 against fp32: only the order of sums differs
    assert np.abs(forms - open_reference(path).backend.run(batch)).max() <= 1e-6


# -- ComputeInFp32 --


@pytest.mark.parametrize("precision", HALVES)
def test_every_narrow_weight_is_cast_once_and_the_table_of_tokens_after_the_look_up(
    build: Build, precision: Precision
) -> None:
    model = build(precision)
    narrow = [value for value in model.graph.initializers.values() if value.dtype in NARROW]
    assert ComputeInFp32()(model).modified
    assert len(narrow) > 20
    for value in narrow:
        (use,) = value.uses()
        if value.name == "embed_tokens.weight":
            assert use.node.op_type == "Gather"
            (use,) = use.node.outputs[0].uses()
        assert use.node.op_type == "Cast"
        assert use.node.attributes["to"].as_int() == ir.DataType.FLOAT


@pytest.mark.parametrize("precision", HALVES)
def test_no_other_cast_between_float_types_is_left(build: Build, precision: Precision) -> None:
    model = build(precision)
    narrow = sum(value.dtype in NARROW for value in model.graph.initializers.values())
    ComputeInFp32()(model)
    targets = [node.attributes["to"].as_int() for node in nodes(model, "Cast")]
    floats = [target for target in targets if ir.DataType(target).is_floating_point()]
    assert floats == narrow * [ir.DataType.FLOAT]
    looked_up = {node.outputs[0] for node in nodes(model, "Gather")}
    typed = {value for node in model.graph for value in node.outputs if value.dtype in NARROW}
    assert typed <= looked_up


def test_fp32_graph_is_its_own_fallback(build: Build) -> None:
    model = build(Precision.FP32)
    before = str(model.graph)
    assert not ComputeInFp32()(model).modified
    assert str(model.graph) == before


@pytest.mark.parametrize("precision", HALVES)
def test_fallback_graph_computes_in_fp32_from_the_rounded_weights(
    make_model: MakeModel,
    make_artifact: MakeArtifact,
    run_graph: RunGraph,
    make_batch: MakeBatch,
    precision: Precision,
) -> None:
    model = make_model(dtype=TORCH[precision], initializer_range=0.2)
    batch = make_batch(1, 33, 2, 64)
    vectors = run_graph(make_artifact(model, precision), CPU, batch)
    # only the order of sums differs; rotary tables in bf16 would be 1e-3 away
    assert np.abs(vectors - open_reference(model).backend.run(batch)).max() <= 1e-6


@pytest.mark.parametrize("precision", HALVES)
def test_fallback_graph_reads_the_weights_the_canonical_graph_reads(
    base: Path, make_artifact: MakeArtifact, precision: Precision
) -> None:
    def locations(target: str) -> Iterator[tuple[str, int | None, int | None]]:
        graph = ir.load(make_artifact(base, precision).graph(target)).graph
        for name, value in graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield name, value.const_value.offset, value.const_value.length

    assert sorted(locations(CANONICAL)) == sorted(locations(CPU))
    assert len(list(locations(CPU))) > 20


# -- fp16 --


def test_fp16_graph_keeps_norms_and_residual_stream_in_fp32(
    base: Path, make_artifact: MakeArtifact
) -> None:
    path = make_artifact(base, Precision.FP16).graph(CANONICAL)
    proto = onnx.load(path, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    kinds = {"RMSNormalization": onnx.TensorProto.FLOAT, "Add": onnx.TensorProto.FLOAT}
    kinds |= {"MatMul": onnx.TensorProto.FLOAT16, "PrefixAttention": onnx.TensorProto.FLOAT16}
    for kind, dtype in kinds.items():
        inferred_types = {types[node.output[0]] for node in inferred.node if node.op_type == kind}
        # sums of positions are of integers
        assert inferred_types - {onnx.TensorProto.INT64, onnx.TensorProto.INT32} == {dtype}, kind


# -- twice, and what is refused --


@pytest.mark.parametrize("precision", IR_DTYPES)
def test_pass_applied_twice_changes_nothing(build: Build, precision: Precision) -> None:
    model = build(precision)
    for rewrite in quantise.load(precision).cpu_passes:
        rewrite(model)
        before = str(model.graph)
        assert not rewrite(model).modified
        assert str(model.graph) == before


def foreign(*inputs: str, **attributes: int) -> ir.Model:
    """A graph with attention that some other tool might have written."""
    values = [ir.val(name, dtype=ir.DataType.INT64, shape=["b", "s"]) for name in inputs]
    node = ir.node("PrefixAttention", values, attributes, domain="anna", name="theirs")
    imports = {"": OPSET, "anna": 1}
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports=imports, name="g")
    return ir.Model(graph, ir_version=11)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (foreign("tokens", "prefix_keys"), "expected an input input_ids"),
        (
            foreign("input_ids", "prefix_keys", num_heads=2, kv_num_heads=1, head_dim=8, causal=1),
            "expected window on theirs",
        ),
    ],
    ids=["no ids", "no window"],
)
def test_attention_that_is_not_ours_is_left_alone(model: ir.Model, message: str) -> None:
    before = str(model.graph)
    with pytest.raises(ir.passes.PreconditionError) as error:
        CpuAttention()(model)
    assert message in str(error.value) and "build with build_graph" in str(error.value)
    assert str(model.graph) == before


def test_graph_with_a_narrow_input_has_no_fallback() -> None:
    x = ir.val("x", dtype=ir.DataType.FLOAT16, shape=[2])
    node = ir.node("Neg", [x])
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": OPSET}, name="g")
    with pytest.raises(ir.passes.PreconditionError, match="found x; build with build_graph"):
        ComputeInFp32()(ir.Model(graph, ir_version=11))


def test_cast_of_an_unknown_type_is_not_taken_for_one_of_floats() -> None:
    x = ir.val("x", dtype=ir.DataType.INT64, shape=[2])
    neg = ir.node("Neg", [x])
    cast = ir.node("Cast", neg.outputs, {"to": ir.DataType.FLOAT}, name="theirs")
    graph = ir.Graph([x], cast.outputs, nodes=[neg, cast], opset_imports={"": OPSET}, name="g")
    with pytest.raises(ir.passes.PreconditionError, match="the type of what theirs casts"):
        ComputeInFp32()(ir.Model(graph, ir_version=11))


def test_cast_of_integers_stays() -> None:
    x = ir.val("x", dtype=ir.DataType.INT64, shape=[2])
    cast = ir.node("Cast", [x], {"to": ir.DataType.FLOAT})
    graph = ir.Graph([x], cast.outputs, nodes=[cast], opset_imports={"": OPSET}, name="g")
    assert not ComputeInFp32()(ir.Model(graph, ir_version=11)).modified
    assert len(graph) == 1
