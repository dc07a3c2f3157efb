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
from anna_export.artifact import Artifact
from anna_export.backends.pytorch import open_reference
from anna_export.checkpoint import Checkpoint
from anna_export.graph.builder import IR_DTYPES, OPSET, build_graph
from anna_export.graph.passes.compute_in_fp32 import NARROW, ComputeInFp32
from anna_export.graph.passes.cpu_attention import DOMAIN, GroupQueryAttention
from anna_export.quantise.scheme import CANONICAL, CPU
from anna_export.spec import Precision
from anna_export.tokenise import TokenBatch

MakeModel = Callable[..., Path]
MakeArtifact = Callable[..., Artifact]
MakeBatch = Callable[..., TokenBatch]
RunGraph = Callable[[Artifact, str, TokenBatch], np.ndarray]
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


# -- GroupQueryAttention --


def test_causal_attention_is_grouped_and_the_last_layers_single_query_is_not(build: Build) -> None:
    model = build(Precision.FP32)
    names = [node.name for node in nodes(model, "Attention")]
    assert GroupQueryAttention()(model).modified
    assert [node.name for node in nodes(model, "GroupQueryAttention")] == names[:-1]
    assert [node.name for node in nodes(model, "Attention")] == names[-1:]
    for node in nodes(model, "GroupQueryAttention"):
        found = {name: attribute.value for name, attribute in node.attributes.items()}
        assert found == {
            "num_heads": 6,
            "kv_num_heads": 2,
            "scale": pytest.approx(16**-0.5),
            "local_window_size": -1,
        }


def test_window_of_the_mask_becomes_the_operators_own(windowed: Path) -> None:
    model = build_graph(Checkpoint.open(windowed), Precision.FP32, 64)
    masks = {node.inputs[3] for node in nodes(model, "Attention")[:-1]}
    GroupQueryAttention()(model)
    grouped = nodes(model, "GroupQueryAttention")
    assert [node.attributes["local_window_size"].as_int() for node in grouped] == [8, 8]
    # the mask's arithmetic went with it; the last layer's query has one of its own
    assert not masks & {value for node in model.graph for value in node.outputs}
    assert len(nodes(model, "Less")) == 1


def test_window_that_no_sequence_reaches_needs_no_mask(windowed: Path) -> None:
    model = build_graph(Checkpoint.open(windowed), Precision.FP32, 8)
    assert all(len(node.inputs) == 3 for node in nodes(model, "Attention")[:-1])
    GroupQueryAttention()(model)
    assert {
        node.attributes["local_window_size"].as_int()
        for node in nodes(model, "GroupQueryAttention")
    } == {-1}


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
    expected, found = (attended(windowed, target, batch) for target in (CANONICAL, CPU))
    for first, second in zip(expected, found, strict=True):
        assert first.shape == (*batch.ids.shape, 96)
        # padded positions too; fp32, values of about 1: only the order of sums differs
        np.testing.assert_allclose(second, first, rtol=0, atol=5e-6)


def test_graph_of_one_layer_has_nothing_to_group(make_model: MakeModel) -> None:
    checkpoint = Checkpoint.open(make_model(num_hidden_layers=1))
    model = build_graph(checkpoint, Precision.FP32, 64)
    assert not GroupQueryAttention()(model).modified
    assert DOMAIN not in model.graph.opset_imports


def test_head_dim_that_the_operator_does_not_take_keeps_the_standard_one(
    make_model: MakeModel, make_artifact: MakeArtifact, run_graph: RunGraph, make_batch: MakeBatch
) -> None:
    model = make_model(head_dim=6, initializer_range=0.2)
    assert not GroupQueryAttention()(
        build_graph(Checkpoint.open(model), Precision.FP32, 64)
    ).modified
    batch = make_batch(17, 5)
    found = run_graph(make_artifact(model), CPU, batch)
    # fp32 against fp32: only the order of sums differs
    assert np.abs(found - open_reference(model).backend.run(batch)).max() <= 1e-6


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
    assert targets.count(ir.DataType.FLOAT) == narrow
    # the attention mask's own
    assert [to for to in targets if to != ir.DataType.FLOAT] == [ir.DataType.BOOL]
    looked_up = {node.outputs[0] for node in nodes(model, "Gather")}
    typed = {value for node in model.graph for value in node.outputs if value.dtype in NARROW}
    assert typed <= looked_up


def test_fp32_graph_is_its_own_twin(build: Build) -> None:
    model = build(Precision.FP32)
    before = str(model.graph)
    assert not ComputeInFp32()(model).modified
    assert str(model.graph) == before


@pytest.mark.parametrize("precision", HALVES)
def test_twin_computes_in_fp32_from_the_rounded_weights(
    make_model: MakeModel,
    make_artifact: MakeArtifact,
    run_graph: RunGraph,
    make_batch: MakeBatch,
    precision: Precision,
) -> None:
    model = make_model(dtype=TORCH[precision], initializer_range=0.2)
    batch = make_batch(1, 33, 2, 64)
    found = run_graph(make_artifact(model, precision), CPU, batch)
    # only the order of sums differs; rotary tables in bf16 would be 1e-3 away
    assert np.abs(found - open_reference(model).backend.run(batch)).max() <= 1e-6


@pytest.mark.parametrize("precision", HALVES)
def test_twin_reads_the_weights_the_canonical_graph_reads(
    base: Path, make_artifact: MakeArtifact, precision: Precision
) -> None:
    def places(target: str) -> Iterator[tuple[str, int | None, int | None]]:
        graph = ir.load(make_artifact(base, precision).graph(target)).graph
        for name, value in graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield name, value.const_value.offset, value.const_value.length

    assert sorted(places(CANONICAL)) == sorted(places(CPU))
    assert len(list(places(CPU))) > 20


# -- fp16 --


def test_fp16_graph_keeps_norms_and_residual_stream_in_fp32(
    base: Path, make_artifact: MakeArtifact
) -> None:
    path = make_artifact(base, Precision.FP16).graph(CANONICAL)
    proto = onnx.load(path, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    kinds = {"RMSNormalization": onnx.TensorProto.FLOAT, "Add": onnx.TensorProto.FLOAT}
    kinds |= {"MatMul": onnx.TensorProto.FLOAT16, "Attention": onnx.TensorProto.FLOAT16}
    for kind, dtype in kinds.items():
        found = {types[node.output[0]] for node in inferred.node if node.op_type == kind}
        assert found == {dtype}, kind


# -- twice, and what is refused --


@pytest.mark.parametrize("precision", IR_DTYPES)
def test_pass_applied_twice_changes_nothing(build: Build, precision: Precision) -> None:
    model = build(precision)
    for rewrite in quantise.load(precision).cpu_passes:
        rewrite(model)
        before = str(model.graph)
        assert not rewrite(model).modified
        assert str(model.graph) == before


def attention(
    *,
    names: tuple[str, ...] = ("input_ids",),
    axes: tuple[int, ...] | None = (1, 4, 8),
    inputs: int = 3,
    masked: bool = False,
    **drop: None,
) -> ir.Model:
    """A causal attention that some other tool might have written."""
    values = [ir.val(name, dtype=ir.DataType.INT64, shape=["b", "s"]) for name in names]
    given = [ir.val(f"x{index}", dtype=ir.DataType.FLOAT, shape=axes) for index in range(3)]
    extra: list[ir.Value | None] = [None] * (inputs - 3)
    mask = ir.node("Cast", [values[0]], {"to": ir.DataType.BOOL})
    if masked:
        extra[0] = mask.outputs[0]
    settings = {"is_causal": 1, "q_num_heads": 2, "kv_num_heads": 1, "scale": 0.5}
    kept = {name: value for name, value in settings.items() if name not in drop}
    node = ir.node("Attention", [*given, *extra], kept, name="theirs")
    graph = ir.Graph(
        [*values, *given], node.outputs, nodes=[mask, node], opset_imports={"": OPSET}, name="g"
    )
    return ir.Model(graph, ir_version=11)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (attention(names=("tokens",)), "expected an input input_ids"),
        (attention(scale=None), "expected scale on theirs"),
        (attention(kv_num_heads=None), "expected kv_num_heads on theirs"),
        (attention(axes=None), "the width of the values of theirs"),
        (attention(inputs=4, masked=True), "no mask but the sliding window's on theirs"),
        (attention(inputs=6), "no mask but the sliding window's on theirs"),
    ],
    ids=["no input_ids", "no scale", "no heads", "no width", "another mask", "past keys"],
)
def test_attention_that_is_not_ours_is_not_grouped(model: ir.Model, message: str) -> None:
    before = str(model.graph)
    with pytest.raises(ir.passes.PreconditionError) as error:
        GroupQueryAttention()(model)
    assert message in str(error.value) and "build with build_graph" in str(error.value)
    assert str(model.graph) == before


def test_graph_with_a_narrow_input_has_no_twin() -> None:
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
