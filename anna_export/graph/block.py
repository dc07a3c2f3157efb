"""Parts of a decoder layer that differ from family to family."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from anna_export.graph.recorder import Recorder
from anna_export.spec import GateActivation


def activated(graph: Recorder, gate: ir.Value, activation: GateActivation) -> ir.Value:
    """Pass the MLP's gate through its activation."""
    match activation:
        case GateActivation.SILU:
            return graph.op("Mul", gate, graph.op("Sigmoid", gate))
        case GateActivation.GELU_TANH:
            return graph.op("Gelu", gate, approximate="tanh")


def normed_heads(
    graph: Recorder, x: ir.Value, heads: int, norm: Callable[[ir.Value], ir.Value]
) -> ir.Value:
    """Pass each head of (B, S, heads * head_dim) through a norm over head_dim."""
    by_head = graph.constant(f"by_head_{heads}", np.array([0, 0, heads, -1]))
    joined = graph.constant("heads_joined", np.array([0, 0, -1]))
    return graph.op("Reshape", norm(graph.op("Reshape", x, by_head)), joined)
