"""Adding nodes and constants to a graph that is there already."""

from typing import Any

import onnx_ir as ir


class Emitter:
    """Adds nodes in front of one node of a graph."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph = graph
        self._node = node

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a standard node of one output."""
        node = ir.node(kind, list(inputs), attributes)
        self._graph.insert_before(self._node, node)
        return node.outputs[0]

    def replace_node(self, value: ir.Value) -> None:
        """Put a value in the place of the node's output; its producer takes the node's name."""
        node, producer = self._node, value.producer()
        assert producer is not None, node.name
        value.type, value.shape = node.outputs[0].type, node.outputs[0].shape
        producer.name = node.name
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
        self._graph.remove(node, safe=True)

    def constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Return the graph's constant of this name, made where it is not there yet."""
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        value = ir.val(name, const_value=tensor)
        self._graph.register_initializer(value)
        return value
