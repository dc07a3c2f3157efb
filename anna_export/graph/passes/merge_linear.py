"""Linear layers of one input as one product: one large product fills a GPU better than three."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from anna_export.graph.emitter import Emitter


class MergeLinear(ir.passes.InPlacePass):
    """Join products that read the same value into one over joined weights.

    1. MatMul by a stored weight, or by one that a DequantizeLinear widens with one scale an output.
    2. A Split gives each its part; the product takes the names of all, joined by "+".
    3. Joined weights are computed when they are written; the parts are gone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Join every group of two or more."""
        graph = model.graph
        groups: dict[ir.Value, list[ir.Node]] = {}
        for node in graph:
            if node.op_type == "MatMul" and _stored(node):
                groups.setdefault(_input(node, 0), []).append(node)
        joined = [nodes for nodes in groups.values() if len(nodes) > 1]
        for nodes in joined:
            _join(graph, nodes)
        return ir.passes.PassResult(model, modified=bool(joined))


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None, node.name
    return value


def _stored(product: ir.Node) -> list[ir.Value]:
    """Return the initializers of a product's weight: itself, or codes and scales; none if other."""
    weight = _input(product, 1)
    if weight.is_initializer():
        return [weight]
    widening = weight.producer()
    if widening is None or widening.op_type != "DequantizeLinear" or len(widening.inputs) != 2:
        return []
    values = [_input(widening, 0), _input(widening, 1)]
    per_output = values[1].shape is not None and len(values[1].shape) == 1
    return values if per_output and all(value.is_initializer() for value in values) else []


def _join(graph: ir.Graph, products: Sequence[ir.Node]) -> None:
    stored = [_stored(product) for product in products]
    into = Emitter(graph, products[0])
    weight, *scales = (_joined(into, values) for values in zip(*stored, strict=True))
    if scales:
        weight = into.op("DequantizeLinear", weight, *scales, axis=1)
    product = into.op("MatMul", _input(products[0], 0), weight)
    producer = product.producer()
    assert producer is not None
    producer.name = "+".join(node.name or "" for node in products)
    outputs = np.array([_tensor(weight).shape.numpy()[-1] for weight, *_ in stored])
    name = "outputs " + "+".join(map(str, outputs))
    lengths = into.constant(name, ir.tensor(outputs.astype(np.int64)))
    split = ir.node("Split", [product, lengths], {"axis": -1}, num_outputs=len(outputs))
    graph.insert_before(products[0], split)
    for node, part in zip(products, split.outputs, strict=True):
        part.type = node.outputs[0].type
        ir.convenience.replace_all_uses_with(node.outputs[0], part)
        widening = _input(node, 1).producer()
        graph.remove(node, safe=True)
        if widening is not None:
            graph.remove(widening, safe=True)
    for values in stored:
        for value in values:
            graph.initializers.pop(value.name or "")


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None, value.name
    return value.const_value


def _joined(into: Emitter, values: Sequence[ir.Value]) -> ir.Value:
    """Return the constant that holds stored tensors side by side, outputs last."""
    name = "+".join(value.name or "" for value in values)
    tensors = [_tensor(value) for value in values]
    dtype, shapes = tensors[0].dtype, [tensor.shape.numpy() for tensor in tensors]
    shape = ir.Shape([*shapes[0][:-1], sum(part[-1] for part in shapes)])

    def concatenate() -> ir.Tensor:
        joined = np.concatenate([tensor.numpy() for tensor in tensors], axis=-1)
        return ir.Tensor(joined, dtype=dtype, name=name)

    value = into.constant(name, ir.LazyTensor(concatenate, dtype, shape, name=name))
    value.shape, value.dtype = shape, dtype
    return value
