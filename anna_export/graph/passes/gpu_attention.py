"""Attention in the form that TensorRT fuses best: no mask where causality alone is one."""

import math
from typing import Final

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from anna_export.graph import attention
from anna_export.graph.builder import PREFIX_KEYS, PREFIX_VALUES
from anna_export.graph.emitter import Emitter


class WithoutPrefix(ir.passes.InPlacePass):
    """Take the prefix out of a canonical graph: texts start at position 0.

    1. prefix_keys and prefix_values are no inputs any more; their default of no tokens stays.
    2. Causal attention without a window is the standard operator with is_causal and grouped heads:
       padding stands on the right, where no real token sees it.
    3. Elsewhere (a window, or the last layer's one query) it keeps its mask.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite inputs and every attention node."""
        graph = model.graph
        kept = [value for value in graph.inputs if value.name not in (PREFIX_KEYS, PREFIX_VALUES)]
        modified = len(kept) < len(graph.inputs)
        graph.inputs.clear()
        graph.inputs.extend(kept)
        for node in [node for node in graph if node.op_type == attention.NAME]:
            _replace(graph, node)
            modified = True
        for key in [key for key in model.functions if key[1] == attention.NAME]:
            del model.functions[key]
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def _replace(graph: ir.Graph, call: ir.Node) -> None:
    found: Final = {name: call.attributes[name].as_int() for name in attention.ATTRIBUTES}
    query, key, value, _, _, mask = call.inputs
    bare = bool(found["causal"]) and not found["window"]
    attributes = {
        "q_num_heads": found["num_heads"],
        "kv_num_heads": found["kv_num_heads"],
        "scale": 1 / math.sqrt(found["head_dim"]),
        "is_causal": int(bare),
    }
    inputs = (query, key, value) if bare else (query, key, value, mask)
    mixed = Emitter(graph, call).op("Attention", *inputs, **attributes)
    mixed.type = call.outputs[0].type
    giver = mixed.producer()
    assert giver is not None
    giver.name = call.name
    ir.convenience.replace_all_uses_with(call.outputs[0], mixed)
    graph.remove(call, safe=True)


class PrefixToGive(ir.passes.InPlacePass):
    """Make prefix_keys and prefix_values inputs without a default, which TensorRT would fold."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Take the defaults away."""
        found = [name for name in (PREFIX_KEYS, PREFIX_VALUES) if name in model.graph.initializers]
        for name in found:
            model.graph.initializers.pop(name)
        return ir.passes.PassResult(model, modified=bool(found))
