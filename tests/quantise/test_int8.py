"""int8: how weights and inputs are rounded, and graphs over weights that are stored once."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anna_export.artifact.folder import Artifact
from anna_export.graph import pooling
from anna_export.graph.external_data import DATA_FILE
from anna_export.graph.names import CANONICAL, CPU
from anna_export.graph.passes.matmul_integer import MatMulIntegerToFloat
from anna_export.quantise.embedding import Int8PerRow, QuantiseEmbedding
from anna_export.quantise.int8 import Int8PerToken
from anna_export.spec import EMBEDDING_WEIGHT, LINEAR_INPUTS
from anna_export.weights.checkpoint import Checkpoint

FAST = settings(max_examples=40, derandomize=True, deadline=None)
FORMAT, TABLE = Int8PerToken(), Int8PerRow()
LAYERS = 3


@pytest.fixture(scope="module")
def checkpoint(sharp: Path, sharp_adapter: Path) -> Checkpoint:
    return Checkpoint.open(sharp, sharp_adapter)


@pytest.fixture(scope="module")
def graphs(int8: Artifact) -> dict[str, ir.Model]:
    return {target: ir.load(int8.graph(target)) for target in (CANONICAL, CPU)}


def nodes(model: ir.Model, kind: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == kind]


def draw(seed: int, rows: int, columns: int) -> torch.Tensor:
    """Draw values with heavy tails, of rows whose sizes are orders apart."""
    torch.manual_seed(seed)
    sizes = 10 ** torch.randint(-6, 4, (rows, 1)).float()
    return torch.randn(rows, columns) / torch.rand(rows, columns) * sizes


# -- the format --


@FAST
@given(seed=st.integers(0, 9999), outputs=st.integers(1, 9), inputs=st.integers(1, 23))
def test_weight_is_rounded_to_the_nearest_of_its_outputs_steps(
    seed: int, outputs: int, inputs: int
) -> None:
    weight = draw(seed, outputs, inputs)
    stored = FORMAT.quantize(weight)
    assert stored[""].abs().amax(dim=0).tolist() == [127] * outputs
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    # half a step, and the rounding of fp32 itself
    assert ((FORMAT.dequantize(stored) - weight).abs() <= 0.50001 * step).all()


@FAST
@given(seed=st.integers(0, 9999), tokens=st.integers(1, 9), inputs=st.integers(1, 23))
def test_input_is_rounded_to_the_nearest_of_its_tokens_steps(
    seed: int, tokens: int, inputs: int
) -> None:
    x = draw(seed, tokens, inputs)
    rounded, step = FORMAT.fake_quantize_input(x), x.abs().amax(dim=1, keepdim=True) / 127
    assert ((rounded - x).abs() <= 0.50001 * step).all()  # as above
    codes = rounded / step
    # a step has 7 bits, what is stored of it 24
    assert (codes - codes.round()).abs().max() <= 1e-4
    for row in range(tokens):
        assert torch.equal(FORMAT.fake_quantize_input(x[row]), rounded[row])


@FAST
@given(seed=st.integers(0, 9999), tokens=st.integers(1, 9))
def test_embedding_is_restored_within_half_a_step_of_its_row(seed: int, tokens: int) -> None:
    table = draw(seed, tokens, 40)
    step = table.abs().amax(dim=1, keepdim=True) / 127
    assert (
        (TABLE.dequantize(TABLE.quantize(table)) - table).abs() <= 0.50001 * step
    ).all()  # as above


def test_row_of_zeros_stays_zero() -> None:
    x = draw(0, 3, 23)
    x[1] = 0
    for numbers in (
        FORMAT.fake_quantize_input(x),
        FORMAT.dequantize(FORMAT.quantize(x)),
        TABLE.dequantize(TABLE.quantize(x)),
    ):
        assert torch.isfinite(numbers).all() and (numbers[1] == 0).all()
        assert numbers[0].any() and numbers[2].any()


def test_layout_is_what_is_stored(checkpoint: Checkpoint) -> None:
    types = {torch.int8: ir.DataType.INT8, torch.float32: ir.DataType.FLOAT}
    for stored, layout in (
        (FORMAT.quantize(draw(0, 5, 23)), FORMAT.layout(5, 23)),
        (TABLE.quantize(draw(0, 5, 23)), TABLE.layout(5, 23)),
    ):
        described = {name: (types[t.dtype], tuple(t.shape)) for name, t in stored.items()}
        assert described == layout


# -- the graphs --


def test_canonical_graph_has_standard_operators_alone(graphs: dict[str, ir.Model]) -> None:
    assert {node.domain for node in graphs[CANONICAL].graph} == {"", pooling.DOMAIN}
    assert {node.domain for f in graphs[CANONICAL].functions.values() for node in f} == {""}


def test_every_linear_layer_is_an_integer_product(
    graphs: dict[str, ir.Model], checkpoint: Checkpoint
) -> None:
    modules = {f"{name}.weight" for name in checkpoint.spec.linear_modules()}
    for target, kind in ((CANONICAL, "MatMulInteger"), (CPU, "MatMulIntegerToFloat")):
        weights = [node.inputs[1] for node in nodes(graphs[target], kind)]
        assert sorted(value.name or "" for value in weights if value is not None) == sorted(modules)
        assert {value.dtype for value in weights if value is not None} == {ir.DataType.INT8}
        assert not nodes(graphs[target], "MatMul")
    assert not nodes(graphs[CPU], "MatMulInteger")


@pytest.mark.parametrize("target", [CANONICAL, CPU])
def test_layers_that_share_an_input_share_its_rounding(
    graphs: dict[str, ir.Model], target: str
) -> None:
    sharing: dict[ir.Value | None, set[str]] = {}
    for node in graphs[target].graph:
        if node.op_type.startswith("MatMulInteger") and node.inputs[1] is not None:
            name = (node.inputs[1].name or "").removesuffix(".weight")
            sharing.setdefault(node.inputs[0], set()).add(name)
    expected = [
        {f"layers.{layer}.{module}" for module in modules}
        for layer in range(LAYERS - 1)
        for modules in LINEAR_INPUTS.values()
    ]
    # in the last layer, the query is computed for the last token alone
    query, *others = LINEAR_INPUTS["attention_input"]
    last = [{query}, set(others), *map(set, list(LINEAR_INPUTS.values())[1:])]
    expected += [{f"layers.{LAYERS - 1}.{module}" for module in modules} for modules in last]
    assert sorted(map(sorted, sharing.values())) == sorted(map(sorted, expected))
    assert len(nodes(graphs[target], "QuantizeLinear")) == len(expected)


def test_embedding_is_looked_up_before_it_is_widened(graphs: dict[str, ir.Model]) -> None:
    for graph in graphs.values():
        table = graph.graph.initializers[EMBEDDING_WEIGHT]
        assert table.dtype is ir.DataType.INT8
        assert [use.node.op_type for use in table.uses()] == ["Gather"]


def test_weights_are_stored_once_for_both_graphs(
    int8: Artifact, graphs: dict[str, ir.Model], checkpoint: Checkpoint
) -> None:
    modules = checkpoint.spec.linear_modules()
    locations: list[dict[str, tuple[object, int | None]]] = []
    for graph in graphs.values():
        tensors = {name: value.const_value for name, value in graph.graph.initializers.items()}
        locations.append(
            {
                name: (tensor.location, tensor.offset)
                for name, tensor in tensors.items()
                if isinstance(tensor, ir.ExternalTensor)
            }
        )
    assert locations[0] == locations[1]
    assert locations[0].keys() >= {EMBEDDING_WEIGHT, *(f"{name}.weight" for name in modules)}
    stored = 0
    for name, shape in checkpoint.spec.weight_shapes().items():
        # a byte a number, four for each output's scale; norms are fp32
        quantised = name == EMBEDDING_WEIGHT or name.removesuffix(".weight") in modules
        stored += int(np.prod(shape)) + 4 * shape[0] if quantised else 4 * shape[0]
    stored += 64 * 16 * 4  # cosines and sines
    size = (int8.folder / DATA_FILE).stat().st_size
    # each begins on a page; the smallest lie in the graphs
    assert 0.99 * stored < size < stored + 4096 * len(locations[0])


@pytest.mark.parametrize("kind", ["a scale a token", "a constant that is no vector"])
def test_scale_that_is_not_one_an_output_is_left_to_be_multiplied(
    int8: Artifact, kind: str
) -> None:
    model = ir.load(int8.graph(CANONICAL))
    product = nodes(model, "MatMulInteger")[0]
    (cast,) = (use.node for use in product.outputs[0].uses())
    (scaled,) = (use.node for use in cast.outputs[0].uses())
    (last,) = (use.node for use in scaled.outputs[0].uses())
    other = last.inputs[1]
    if kind != "a scale a token":
        other = ir.val("matrix", const_value=ir.tensor(np.ones((1, 1), np.float32), name="matrix"))
        model.graph.register_initializer(other)
    scaled.replace_input_with(1, other)
    MatMulIntegerToFloat()(model)
    assert nodes(model, "MatMulInteger") == [product]
    assert len(nodes(model, "MatMulIntegerToFloat")) == 7 * LAYERS - 1


def test_pass_applied_twice_changes_nothing(int8: Artifact) -> None:
    model = ir.load(int8.graph(CANONICAL))
    assert MatMulIntegerToFloat()(model).modified
    assert not MatMulIntegerToFloat()(model).modified


def test_table_that_is_quantised_already_is_refused(
    graphs: dict[str, ir.Model], checkpoint: Checkpoint
) -> None:
    with pytest.raises(ir.passes.PreconditionError, match=r"fp32 embed_tokens\.weight"):
        QuantiseEmbedding(TABLE, checkpoint)(graphs[CANONICAL])
