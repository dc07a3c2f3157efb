"""The fp32 twin: the same stored weights computed in fp32, where the narrow type cannot be."""

import onnx_ir as ir

NARROW = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)


class ComputeInFp32(ir.passes.InPlacePass):
    """Widen a bf16 or fp16 graph to fp32 arithmetic over the same weights.

    1. Every narrow initializer is followed by one Cast to fp32; a table that is only looked up
       is cast after the look-up, so that it is never held twice.
    2. Casts between narrow and wide types inside the graph go.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the whole graph."""
        graph = model.graph
        narrow = [value for value in graph.initializers.values() if value.dtype in NARROW]
        if not narrow:
            return ir.passes.PassResult(model, modified=False)
        for node in list(graph):
            if node.op_type == "Cast" and node.attributes["to"].as_int() in (
                *NARROW,
                ir.DataType.FLOAT,
            ):
                source = node.inputs[0]
                assert source is not None
                ir.convenience.replace_all_uses_with(node.outputs[0], source)
                graph.remove(node, safe=True)
        for value in narrow:
            _widen(graph, value)
        return ir.passes.PassResult(model, modified=True)


def _widen(graph: ir.Graph, value: ir.Value) -> None:
    uses = list(value.uses())
    looked_up = [use for use in uses if use.node.op_type == "Gather" and use.idx == 0]
    if len(looked_up) == len(uses):
        for use in looked_up:
            _cast_after(graph, use.node.outputs[0], use.node)
        return
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
    graph.insert_before(graph[0], cast)
    for use in uses:
        use.node.replace_input_with(use.idx, cast.outputs[0])


def _cast_after(graph: ir.Graph, value: ir.Value, node: ir.Node) -> None:
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
    uses = list(value.uses())
    for use in uses:
        if use.node is not cast:
            use.node.replace_input_with(use.idx, cast.outputs[0])
    graph.insert_after(node, cast)
