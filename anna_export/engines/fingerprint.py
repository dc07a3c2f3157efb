"""What two graphs share that differ in nothing but their weights."""

import hashlib
import json
from typing import Any

import onnx_ir as ir


def graph_fingerprint(model: ir.Model) -> str:
    """Return the sha256 of a graph without its weights: engines of one graph may be refitted.

    Every name, operator, attribute, shape and type counts, and each weight's name, type and shape.
    They are taken field by field: a library's own text of them changes from version to version.
    """
    described = {
        "opsets": dict(model.graph.opset_imports),
        "graph": _body(model.graph),
        "functions": [
            [list(function.identifier()), sorted(function.attributes), _body(function)]
            for function in model.functions.values()
        ],
        "weights": sorted(_value(value) for value in model.graph.initializers.values()),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _body(body: ir.Graph | ir.Function) -> dict[str, Any]:
    return {
        "inputs": [_value(value) for value in body.inputs],
        "outputs": [_value(value) for value in body.outputs],
        "nodes": [
            [
                *(node.domain, node.op_type, node.overload, node.name),
                [None if value is None else value.name for value in node.inputs],
                [value.name for value in node.outputs],
                {name: _attribute(attribute) for name, attribute in node.attributes.items()},
            ]
            for node in body
        ],
    }


def _value(value: ir.Value) -> list[Any]:
    """Return name, type and shape; unknown sizes by their names."""
    sizes = None
    if value.shape is not None:
        sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    return [value.name, None if value.dtype is None else value.dtype.name, sizes]


def _attribute(attribute: ir.Attr) -> list[Any]:
    if attribute.is_ref():
        return [attribute.type.name, "of the call", attribute.ref_attr_name]
    content = attribute.value
    if isinstance(content, ir.TensorProtocol):
        content = [content.dtype.name, content.shape.numpy(), content.tobytes().hex()]
    elif attribute.type is ir.AttributeType.GRAPH:
        content = _body(attribute.as_graph())
    # other kinds are numbers and text, or no JSON, which is refused
    return [attribute.type.name, content]
