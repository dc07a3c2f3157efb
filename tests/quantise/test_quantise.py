"""Schemes: one for every precision; a float one's graphs compute in what it promises."""

from pathlib import Path

import onnx_ir as ir
import pytest

from anna_export import quantise
from anna_export.graph.builder import build_graph
from anna_export.graph.names import CANONICAL, CPU
from anna_export.graph.tensors import IR_DTYPES
from anna_export.quantise.scheme import Scheme
from anna_export.spec import Precision
from anna_export.weights.checkpoint import Checkpoint


@pytest.fixture(params=IR_DTYPES)
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return quantise.load(request.param)


@pytest.fixture
def graphs(scheme: Scheme, base: Path) -> dict[str, ir.Model]:
    return scheme.graphs(Checkpoint.open(base), 64)


def multiplied(model: ir.Model) -> set[ir.DataType | None]:
    """Return the types of the second factors of all matrix products: weights, or their casts."""
    products = [node.inputs[1] for node in model.graph if node.op_type == "MatMul"]
    return {value.dtype for value in products if value is not None}


@pytest.mark.parametrize("precision", Precision)
def test_every_precision_has_a_scheme_of_its_own(precision: Precision) -> None:
    assert quantise.load(precision).precision is precision


def test_scheme_makes_one_graph_for_each_target(graphs: dict[str, ir.Model]) -> None:
    assert list(graphs) == [CANONICAL, CPU]
    assert graphs[CANONICAL] is not graphs[CPU]


def test_canonical_graph_multiplies_in_the_precision_asked_for(
    scheme: Scheme, graphs: dict[str, ir.Model]
) -> None:
    assert multiplied(graphs[CANONICAL]) == {IR_DTYPES[scheme.precision]}


def test_cpu_graph_multiplies_in_fp32(graphs: dict[str, ir.Model]) -> None:
    assert multiplied(graphs[CPU]) == {ir.DataType.FLOAT}


def test_both_graphs_store_the_same_weights_in_the_same_type(
    scheme: Scheme, graphs: dict[str, ir.Model]
) -> None:
    stored = [
        {
            name: (value.dtype, value.shape)
            for name, value in model.graph.initializers.items()
            if name.endswith(".weight") or name.startswith("rotary.")
        }
        for model in graphs.values()
    ]
    assert stored[0] == stored[1]
    matrices = {dtype for name, (dtype, _) in stored[0].items() if name.endswith("_proj.weight")}
    assert matrices == {IR_DTYPES[scheme.precision]}


def test_lowering_for_a_cpu_leaves_the_canonical_graph_alone(
    scheme: Scheme, graphs: dict[str, ir.Model], base: Path
) -> None:
    canonical = build_graph(Checkpoint.open(base), scheme.precision, 64)
    assert str(graphs[CANONICAL].graph) == str(canonical.graph)


def test_graphs_share_tensors_that_are_unread(graphs: dict[str, ir.Model], base: Path) -> None:
    canonical, cpu = (graphs[target].graph.initializers for target in (CANONICAL, CPU))
    for name in Checkpoint.open(base).spec.weight_shapes():
        tensor = canonical[name].const_value
        assert isinstance(tensor, ir.LazyTensor) and not tensor.cache
        assert cpu[name].const_value is tensor


def test_thresholds_are_no_looser_than_what_is_promised(scheme: Scheme) -> None:
    promised = {Precision.FP32: 0.999999, Precision.FP16: 0.9995, Precision.BF16: 0.9995}
    assert promised[scheme.precision] <= (scheme.thresholds.min_cosine or 0) < 1


@pytest.mark.parametrize("precision", sorted(set(Precision) - set(IR_DTYPES)))
def test_quantised_scheme_is_held_to_a_mean_loss(precision: Precision) -> None:
    thresholds = quantise.load(precision).thresholds
    assert thresholds.max_loss == (0.05 if precision is Precision.INT4 else 0.01)
    assert thresholds.min_cosine is None


@pytest.mark.parametrize("precision", Precision)
def test_text_alone_and_in_a_batch_is_held_to_one_vector(precision: Precision) -> None:
    alone = 0.999999 if precision is Precision.FP32 else 0.9999
    assert alone <= (quantise.load(precision).thresholds.batch1_min_cosine or 0) < 1
