"""Attention in the form that TensorRT fuses best: no mask where causality alone is one."""

import onnx_ir as ir

from anna_export.graph import attention
from anna_export.graph.names import PREFIX_KEYS, PREFIX_VALUES


class WithoutPrefix(ir.passes.InPlacePass):
    """Take the prefix out of a canonical graph: texts start at position 0.

    1. prefix_keys and prefix_values are no inputs any more; their default of no tokens stays.
    2. Causal attention without a window is the standard operator with is_causal and grouped heads:
       padding stands on the right, where no real token sees it.
    3. Elsewhere (a window, the last layer's one query, or both ways) it keeps its mask.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite inputs and every attention node."""
        graph = model.graph
        inputs = [value for value in graph.inputs if value.name not in (PREFIX_KEYS, PREFIX_VALUES)]
        modified = len(inputs) < len(graph.inputs)
        graph.inputs.clear()
        graph.inputs.extend(inputs)
        for call in attention.calls(graph):
            numbers = attention.numbers(call)
            bare = numbers.causal and not numbers.window
            attention.replace_by_standard(graph, call, masked=not bare)
            modified = True
        attention.drop_function(model)
        return ir.passes.PassResult(model, modified=modified)


class InputsToGive(ir.passes.InPlacePass):
    """Make optional inputs, the prefix and prompt_tokens, ones without a default.

    TensorRT would fold it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Take the defaults away."""
        optional = (value.name or "" for value in model.graph.inputs)
        names = [name for name in optional if name in model.graph.initializers]
        for name in names:
            model.graph.initializers.pop(name)
        return ir.passes.PassResult(model, modified=bool(names))
