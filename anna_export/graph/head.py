"""What stands behind the decoder: pooling, Dense modules and unit length, computed in fp32.

The last token's state of unit length, and nothing else, is one node of pooling.py. Everything else
is standard operators, by the rules of sentence-transformers' modules.
"""

from typing import Final

import numpy as np
import onnx_ir as ir

from anna_export.graph.pooling import SMALLEST_NORM
from anna_export.graph.recorder import Recorder
from anna_export.spec import Activation, Head, PoolingMode, Precision

# What the library divides a sum of no tokens by.
_SMALLEST_COUNT: Final = 1e-9
_OPERATORS: Final = {
    Activation.TANH: "Tanh",
    Activation.RELU: "Relu",
    Activation.GELU: "Gelu",
    Activation.SIGMOID: "Sigmoid",
}


def first_pooled(graph: Recorder, prompt_tokens: ir.Value, prefix: ir.Value) -> ir.Value:
    """Return where each row's pooled tokens start: behind its prompt, (1,) or (B,) int64.

    Args:
        graph: Where it is added.
        prompt_tokens: (1,) or (B,) int64 tokens of the prompt, a prefix's among them.
        prefix: P, a scalar: tokens that are not among the row's.
    """
    zero = graph.constant("zero", np.array(0))
    return graph.op("Max", graph.op("Sub", prompt_tokens, prefix), zero)


def pooled_index(
    graph: Recorder, mode: PoolingMode, lengths: ir.Value, first: ir.Value | None
) -> ir.Value | None:
    """Return the (B,) int64 index of the one token that is pooled; None for a mean of several.

    Args:
        graph: Where it is added.
        mode: The last token, or the first that is pooled: the row's own first one if none is.
        lengths: (B,) int64 tokens of each row.
        first: Where pooled tokens start; None for the row's start.
    """
    if mode is PoolingMode.LAST:
        return graph.op("Sub", lengths, graph.constant("one", np.array(1)))
    if mode is PoolingMode.MEAN:
        return None
    zeros = graph.op("Sub", lengths, lengths)
    if first is None:
        return zeros
    return graph.op("Where", graph.op("Less", first, lengths), first, zeros)


def mean(graph: Recorder, hidden: ir.Value, lengths: ir.Value, first: ir.Value | None) -> ir.Value:
    """Return the (B, D) mean of each row's pooled tokens; of none of them, zeros.

    Args:
        graph: Where it is added.
        hidden: (B, S, D) fp32 states.
        lengths: (B,) int64 tokens of each row.
        first: Where pooled tokens start; None for the row's start.
    """
    op, axis = graph.op, graph.constant("axis_1", np.array([1]))
    width = op("Squeeze", op("Shape", hidden, start=1, end=2))
    zero, unit = graph.constant("zero", np.array(0)), graph.constant("one", np.array(1))
    positions = op("Range", zero, width, unit)  # (S,)
    pooled = op("Less", positions, op("Unsqueeze", lengths, axis))  # (B, S)
    if first is not None:
        behind_prompt = op("GreaterOrEqual", positions, op("Unsqueeze", first, axis))
        pooled = op("And", pooled, behind_prompt)
    pooled.dtype = ir.DataType.BOOL  # passes must know what is cast
    column = op("Unsqueeze", pooled, graph.constant("axis_last", np.array([-1])))
    nothing = graph.constant("nothing", np.array(0, np.float32))
    total = op("ReduceSum", op("Where", column, hidden, nothing), axis, keepdims=0)
    count = op("ReduceSum", op("Cast", pooled, to=ir.DataType.FLOAT), axis, keepdims=1)
    least = graph.constant("smallest_count", np.array(_SMALLEST_COUNT, np.float32))
    return op("Div", total, op("Max", count, least))


def behind_pooling(graph: Recorder, row: ir.Value, head: Head) -> ir.Value:
    """Pass (B, D) fp32 pooled rows through the Dense modules, and scale them to unit length."""
    for index, dense in enumerate(head.dense):
        module = f"head.dense.{index}"
        weight = graph.weight(f"{module}.weight", Precision.FP32, transpose=True)
        row = graph.op("MatMul", row, weight, name=module)
        if dense.bias:
            row = graph.op("Add", row, graph.weight(f"{module}.bias", Precision.FP32))
        row = _activated(graph, row, dense.activation)
    if not head.normalize:
        return row
    norm = graph.op("ReduceL2", row, graph.constant("axis_last", np.array([-1])), keepdims=1)
    least = graph.constant("smallest_norm", np.array(SMALLEST_NORM, np.float32))
    return graph.op("Div", row, graph.op("Max", norm, least))


def _activated(graph: Recorder, row: ir.Value, activation: Activation) -> ir.Value:
    if activation is Activation.IDENTITY:
        return row
    if activation is Activation.SILU:
        return graph.op("Mul", row, graph.op("Sigmoid", row))
    return graph.op(_OPERATORS[activation], row)
