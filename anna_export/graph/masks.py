"""Which keys each query attends to."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from anna_export.graph.recorder import Recorder


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a batch.

    Args:
        positions: (P + S,) int64.
        lengths: (B,) int64 tokens of each row where attention goes both ways; None where it is
            causal: padding stands behind the tokens, where none of them sees it.
    """

    positions: ir.Value
    lengths: ir.Value | None


def attention_mask(
    graph: Recorder, queries: ir.Value, keys: Keys, window: int | None, *, of_rows: bool
) -> ir.Value:
    """Return a mask, bool, that broadcasts to (B, H, Q, P + S).

    Args:
        graph: Where it is added.
        queries: Positions of the queries: (Q,), the same in every row, or (B, 1).
        keys: What they may attend to.
        window: Tokens less than so far away are attended to; None for all.
        of_rows: Whether the queries are (B, 1).
    """
    op = graph.op
    if of_rows:  # (B, 1, 1, 1)
        queries = op("Unsqueeze", queries, graph.constant("axes_2_3", np.array([2, 3])))
    else:  # (Q, 1)
        queries = op("Unsqueeze", queries, graph.constant("axis_last", np.array([-1])))
    if keys.lengths is None:
        causal = op("GreaterOrEqual", queries, keys.positions)
        return causal if window is None else op("And", causal, _near(graph, queries, keys, window))
    lengths = op("Unsqueeze", keys.lengths, graph.constant("axes_1_2_3", np.array([1, 2, 3])))
    real = op("Less", keys.positions, lengths)  # (B, 1, 1, S)
    if window is None:
        # a row for every query: ONNX Runtime's operator takes no mask that is one for all
        every = op("GreaterOrEqual", queries, graph.constant("zero", np.array(0)))
        return op("And", every, real)
    # padding attends to itself at least: of nothing at all the softmax is no number
    attended = op("Or", real, op("Equal", queries, keys.positions))
    return op("And", attended, _near(graph, queries, keys, window))


def _near(graph: Recorder, queries: ir.Value, keys: Keys, window: int) -> ir.Value:
    distance = graph.op("Sub", queries, keys.positions)
    if keys.lengths is not None:
        distance = graph.op("Abs", distance)
    return graph.op("Less", distance, graph.constant(f"window_{window}", np.array(window)))
