"""The fp32 fallback graph: fp32 over the stored weights, where the narrow type is not computed."""

import onnx_ir as ir

NARROW = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
FLOATS = (*NARROW, ir.DataType.FLOAT)


class ComputeInFp32(ir.passes.InPlacePass):
    """Widen a bf16 or fp16 graph to compute in fp32 over the same weights.

    1. Every narrow initializer is followed by one Cast to fp32; a table that is only looked up
       is cast after the look-up, so that it is never held twice.
    2. Every other Cast between float types goes.
    """

    def requires(self, model: ir.Model) -> None:
        """Refuse a graph with narrow inputs, or a Cast of an unknown type."""
        for value in model.graph.inputs:
            if value.dtype in NARROW:
                raise ir.passes.PreconditionError(
                    f"expected no {value.dtype} input, found {value.name}; build with build_graph"
                )
        for node in model.graph:
            if _casts_to(node, *FLOATS) and _source(node).dtype is None:
                raise ir.passes.PreconditionError(
                    f"expected the type of what {node.name} casts, found none; build with "
                    "build_graph"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the whole graph."""
        graph = model.graph
        narrow = [value for value in graph.initializers.values() if value.dtype in NARROW]
        stored = [value for weight in narrow for value in _first_uses(weight)]
        superfluous = [node for node in graph if _is_superfluous(node, stored)]
        unwidened = [value for value in stored if not _is_widened(value)]
        for cast in superfluous:
            ir.convenience.replace_all_uses_with(cast.outputs[0], _source(cast))
            graph.remove(cast, safe=True)
        for value in unwidened:
            _widen(graph, value)
        for value in (value for node in graph for value in node.outputs):
            if value.dtype in NARROW and value not in stored:
                # not value.dtype: clones share types, see findings/onnx-ir-clone-shares-types.sh
                value.type = ir.TensorType(ir.DataType.FLOAT)
        return ir.passes.PassResult(model, modified=bool(superfluous or unwidened))


def _casts_to(node: ir.Node, *dtypes: ir.DataType) -> bool:
    return node.op_type == "Cast" and node.attributes["to"].as_int() in dtypes


def _source(cast: ir.Node) -> ir.Value:
    source = cast.inputs[0]
    assert source is not None
    return source


def _first_uses(weight: ir.Value) -> list[ir.Value]:
    """Return what to cast for a stored weight: itself, or what is looked up in it."""
    uses = list(weight.uses())
    if all(use.node.op_type == "Gather" and use.idx == 0 for use in uses):
        return [use.node.outputs[0] for use in uses]
    return [weight]


def _is_superfluous(node: ir.Node, stored: list[ir.Value]) -> bool:
    if not _casts_to(node, *FLOATS) or _source(node).dtype not in FLOATS:
        return False
    return not (_casts_to(node, ir.DataType.FLOAT) and _source(node) in stored)


def _is_widened(value: ir.Value) -> bool:
    return all(_casts_to(use.node, ir.DataType.FLOAT) for use in value.uses())


def _widen(graph: ir.Graph, value: ir.Value) -> None:
    uses = list(value.uses())
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
    cast.outputs[0].dtype = ir.DataType.FLOAT
    for use in uses:
        use.node.replace_input_with(use.idx, cast.outputs[0])
    lookup = value.producer()
    if lookup is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(lookup, cast)
