"""The attention node: tokens attend to a prefix computed ahead and to the text behind it.

An operator of our own whose body is standard operators: runtimes inline it, and a pass may put in
its place what a runtime is faster at.
"""

import math
from typing import Any, Final

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from anna_export.graph.pooling import DOMAIN
from anna_export.spec import EmbeddingSpec

NAME: Final = "PrefixAttention"
# Attributes of every call: what the operator means, for passes; the body has the numbers inside.
ATTRIBUTES: Final = ("num_heads", "kv_num_heads", "head_dim", "causal", "window")


def prefix_attention_function(opset: int, spec: EmbeddingSpec) -> ir.Function:
    """Return the attention of Q queries to P prefix tokens and S text tokens.

    Inputs: query (B, Q, H head_dim), key and value (B, S, K head_dim), prefix_key and prefix_value
    (K, P, head_dim), the same for all texts, and mask, bool, broadcast to (B, H, Q, P + S): the
    keys that each query attends to. P may be 0. Output: (B, Q, H head_dim).

    The prefix is copied for every text: so TensorRT keeps attention fused, which it does not where
    attention is split over prefix and text.
    """
    names = ("query", "key", "value", "prefix_key", "prefix_value", "mask")
    query, key, value, prefix_key, prefix_value, mask = inputs = [ir.val(name) for name in names]
    tape = ir.tape.Tape()

    def op(kind: str, *operands: ir.Value, **attributes: Any) -> ir.Value:
        return tape.op(kind, list(operands), attributes)

    def constant(numbers: list[int]) -> ir.Value:
        return op("Constant", value=ir.tensor(numbers, dtype=ir.DataType.INT64))

    def to_heads(x: ir.Value, heads: int) -> ir.Value:
        x = op("Reshape", x, constant([0, 0, heads, spec.head_dim]))
        return op("Transpose", x, perm=[0, 2, 1, 3])

    copies = op("Concat", op("Shape", query, start=0, end=1), constant([1, 1, 1]), axis=0)

    def behind(prefix: ir.Value, x: ir.Value) -> ir.Value:
        return op("Concat", op("Expand", prefix, copies), to_heads(x, spec.kv_heads), axis=2)

    mixed = op(
        "Attention",
        to_heads(query, spec.heads),
        behind(prefix_key, key),
        behind(prefix_value, value),
        mask,
        scale=1 / math.sqrt(spec.head_dim),
    )
    tokens = op("Transpose", mixed, perm=[0, 2, 1, 3])
    output = op("Reshape", tokens, constant([0, 0, spec.q_dim]))
    output.name = "attended"
    body = ir.Graph(inputs, [output], nodes=tape.nodes, opset_imports={"": opset}, name=NAME)
    attributes = [ir.Attr(name, ir.AttributeType.INT, None) for name in ATTRIBUTES]
    return ir.Function(DOMAIN, NAME, graph=body, attributes=attributes)


def calls(graph: ir.Graph) -> list[ir.Node]:
    """Return every attention node."""
    return [node for node in graph if node.op_type == NAME]


def numbers(call: ir.Node) -> dict[str, int]:
    """Return what an attention node's attributes say, by their names."""
    return {name: call.attributes[name].as_int() for name in ATTRIBUTES}


def drop_function(model: ir.Model) -> None:
    """Take the operator's body away, once it has no calls, and the masks they leave unused."""
    for key in [key for key in model.functions if key[1] == NAME]:
        del model.functions[key]
    RemoveUnusedNodesPass()(model)
