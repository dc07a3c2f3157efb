"""A graph's fingerprint: of what its engine is built from, and of no library's way to print it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from anna_export.engines.build import gpu_form
from anna_export.engines.fingerprint import graph_fingerprint
from anna_export.spec import Precision
from tests.support.types import MakeArtifact

FINGERPRINT = "da69d98cfaf568c8fd0015ca5aecebbb1e772a1ee1ca578ac1aeda5846e1de1c"


def small_graph() -> ir.Model:
    """One product by a weight, one function with an attribute, one constant."""
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 3])
    weight = ir.val("weight", const_value=ir.tensor(np.ones((3, 2), np.float32), name="weight"))
    tape = ir.tape.Tape()
    product = tape.op("MatMul", [x, weight], name="product")
    scaled = tape.op("Scale", [product], {"axis": 1}, domain="own", name="scaled")
    scaled.name = "y"
    inner = ir.val("inner")
    body = ir.tape.Tape()
    constant = body.op("Constant", [], {"value": ir.tensor([0.5], dtype=ir.DataType.FLOAT)})
    half = body.op("Mul", [inner, constant])
    function = ir.Graph([inner], [half], nodes=body.nodes, opset_imports={"": 23}, name="Scale")
    axis = ir.Attr("axis", ir.AttributeType.INT, None)
    graph = ir.Graph(
        [x], [scaled], nodes=tape.nodes, initializers=[weight], opset_imports={"": 23, "own": 1}
    )
    scale = ir.Function("own", "Scale", graph=function, attributes=[axis])
    return ir.Model(graph, ir_version=11, functions=[scale])


def test_fingerprint_of_a_graph_stays_what_it_was() -> None:
    # stored beside engines: where this changes, no engine of an earlier version can be refitted
    assert graph_fingerprint(small_graph()) == FINGERPRINT


def test_fingerprint_is_no_librarys_text(
    base: Path, make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gpu_form(make_artifact(base, Precision.BF16))
    before, text = graph_fingerprint(model), str(model.graph.inputs[0])
    kinds = (ir.Value, ir.Node, ir.Attr, ir.Shape, ir.SymbolicDim, ir.TensorType, ir.DataType)
    for kind in kinds:
        for method in ("__repr__", "__str__"):
            monkeypatch.setattr(kind, method, lambda value: f"another text {id(value)}")
    assert str(model.graph.inputs[0]) != text
    assert graph_fingerprint(model) == before


def rename_weight(model: ir.Model) -> None:
    model.graph.initializers["weight"].name = "other"


def function_constant(model: ir.Model) -> ir.Node:
    (function,) = model.functions.values()
    return function[0]


CHANGES: dict[str, Callable[[ir.Model], object]] = {
    "weight's name": rename_weight,
    "weight's type": lambda m: setattr(
        m.graph.initializers["weight"], "dtype", ir.DataType.FLOAT16
    ),
    "weight's shape": lambda m: setattr(m.graph.initializers["weight"], "shape", ir.Shape([2, 3])),
    "input's size": lambda m: setattr(m.graph.inputs[0], "shape", ir.Shape(["batch", 4])),
    "input's name of a size": lambda m: setattr(m.graph.inputs[0], "shape", ir.Shape(["rows", 3])),
    "output's type": lambda m: setattr(m.graph.outputs[0], "dtype", ir.DataType.FLOAT),
    "operator": lambda m: setattr(m.graph[0], "op_type", "Gemm"),
    "domain": lambda m: setattr(m.graph[1], "domain", ""),
    "node's name": lambda m: setattr(m.graph[0], "name", "another"),
    "attribute": lambda m: m.graph[1].attributes.add(ir.AttrInt64("axis", 0)),
    "new attribute": lambda m: m.graph[1].attributes.add(ir.AttrString("mode", "fast")),
    "operator set": lambda m: m.graph.opset_imports.update({"": 22}),
    "constant in a function": lambda m: function_constant(m).attributes.add(
        ir.AttrTensor("value", ir.tensor([0.25], dtype=ir.DataType.FLOAT))
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_field_counts(change: Callable[[ir.Model], object]) -> None:
    model = small_graph()
    change(model)
    assert graph_fingerprint(model) != graph_fingerprint(small_graph())


def test_numbers_of_a_weight_do_not_count() -> None:
    model = small_graph()
    other = ir.tensor(np.zeros((3, 2), np.float32), name="weight")
    model.graph.initializers["weight"].const_value = other
    assert graph_fingerprint(model) == graph_fingerprint(small_graph())
