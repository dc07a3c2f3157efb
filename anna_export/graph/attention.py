"""The attention node: tokens attend to a prefix computed ahead and to the text behind it.

An operator of our own whose body is standard operators: runtimes inline it, and a pass may put in
its place what a runtime is faster at.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from anna_export.graph.emitter import Emitter
from anna_export.graph.pooling import DOMAIN
from anna_export.spec import EmbeddingSpec

NAME: Final = "PrefixAttention"
# Attributes of every call: what the operator means, for passes; the body has the numbers inside.
ATTRIBUTES: Final = ("num_heads", "kv_num_heads", "head_dim", "causal", "window")
SCALE: Final = "scale"


@dataclass(frozen=True, slots=True)
class Numbers:
    """What an attention node's attributes say.

    Args:
        num_heads: Of queries.
        kv_num_heads: Of keys and values.
        head_dim: Length of each.
        causal: Whether queries are all the text's tokens, and attend to none behind them.
        window: Tokens less than so far away are attended to; 0 for all.
        scale: What scores are multiplied by.
    """

    num_heads: int
    kv_num_heads: int
    head_dim: int
    causal: bool
    window: int
    scale: float


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
        scale=spec.score_scale,
    )
    tokens = op("Transpose", mixed, perm=[0, 2, 1, 3])
    output = op("Reshape", tokens, constant([0, 0, spec.q_dim]))
    output.name = "attended"
    body = ir.Graph(inputs, [output], nodes=tape.nodes, opset_imports={"": opset}, name=NAME)
    attributes = [ir.Attr(name, ir.AttributeType.INT, None) for name in ATTRIBUTES]
    attributes.append(ir.Attr(SCALE, ir.AttributeType.FLOAT, None))
    return ir.Function(DOMAIN, NAME, graph=body, attributes=attributes)


def calls(graph: ir.Graph) -> list[ir.Node]:
    """Return every attention node."""
    return [node for node in graph if node.op_type == NAME]


def numbers(call: ir.Node) -> Numbers:
    """Return what an attention node's attributes say."""
    heads, groups, head_dim, causal, window = (
        call.attributes[name].as_int() for name in ATTRIBUTES
    )
    # graphs from before other scales than this one have none
    scale = 1 / math.sqrt(head_dim)
    if SCALE in call.attributes:
        scale = call.attributes[SCALE].as_float()
    return Numbers(heads, groups, head_dim, bool(causal), window, scale)


def replace_by_standard(graph: ir.Graph, call: ir.Node, *, masked: bool) -> None:
    """Put the standard operator over the text alone in a node's place.

    Args:
        graph: Where it is.
        call: The node; its prefix is left out.
        masked: Whether it keeps its mask; else it is causal by the operator's own attribute.
    """
    number = numbers(call)
    query, key, value, _, _, mask = call.inputs
    into = Emitter(graph, call)
    attended = into.op(
        "Attention",
        *(query, key, value, mask)[: 3 + masked],
        q_num_heads=number.num_heads,
        kv_num_heads=number.kv_num_heads,
        scale=number.scale,
        is_causal=int(not masked),
    )
    into.replace_node(attended)


def drop_function(model: ir.Model) -> None:
    """Take the operator's body away, once it has no calls, and the masks they leave unused."""
    for key in [key for key in model.functions if key[1] == NAME]:
        del model.functions[key]
    RemoveUnusedNodesPass()(model)
