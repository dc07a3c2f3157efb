"""The graph's entrance: rows padded on either side become rows that start with their tokens.

Others run the graph with tokenizers that pad on the left, and say so in attention_mask alone. A
mask that no padding makes has no right answer: ONNX Runtime's CPU provider refuses it, since it
checks what is looked up. CUDA's checks nothing: there such a row's hidden states are zeros.
"""

from typing import Final

import numpy as np
import onnx_ir as ir

from anna_export.graph.recorder import Recorder

# ONNX Runtime's message has it, and nothing else in it says what was wrong.
CHECK: Final = "attention_mask/each row is ones side by side"
# Behind every position.
_NONE: Final = 1 << 30


def tokens_first(
    graph: Recorder, ids: ir.Value, mask: ir.Value, no_id: int
) -> tuple[ir.Value, ir.Value]:
    """Move each row's tokens to its start.

    In int32, for ONNX Runtime's CUDA provider reduces no int64 to its least.

    Args:
        graph: Where it is added.
        ids: (B, S) int64 token ids.
        mask: (B, S) int64, in each row one run of ones among zeros, or of others than zero.
        no_id: An id beyond the vocabulary: what a row of another mask is filled with.

    Returns:
        (B, S) int64 ids, behind the tokens the last of them; and (B,) int64, how many there are.
    """
    op = graph.op

    def int32(x: ir.Value) -> ir.Value:
        return op("Cast", x, to=ir.DataType.INT32)

    def int32_constant(number: int) -> ir.Value:
        return graph.constant(f"int32_{number}", np.array(number, np.int32))

    def int64_constant(name: str, number: int | list[int]) -> ir.Value:
        return graph.constant(name, np.array(number))

    axis, unit = int64_constant("axis_1", [1]), int64_constant("one", 1)
    width = op("Squeeze", op("Shape", ids, start=1, end=2))
    positions = int32(op("Range", int64_constant("zero", 0), width, unit))  # (S,)
    real = op("Cast", mask, to=ir.DataType.BOOL)
    first = op("ReduceMin", op("Where", real, positions, int32_constant(_NONE)), axis)  # (B, 1)
    last = op("ReduceMax", op("Where", real, positions, int32_constant(-1)), axis)
    length = op("ReduceSum", int32(real), axis)
    # 0 for ones side by side: else they are fewer than from first to last, or there are none
    gap = op("Abs", op("Sub", op("Sub", last, first), op("Sub", length, int32_constant(1))))
    is_run = op("Gather", graph.constant("true", np.array([True])), gap, name=CHECK)
    # behind the tokens the last of them again; the width for that would be computed on the host,
    # and TensorRT-RTX splits the graph there
    source = op("Min", op("Add", first, positions), last)
    moved = op("GatherElements", ids, source, axis=1)
    moved = op("Where", is_run, moved, int64_constant("no_id", no_id))
    moved.type, moved.shape = ids.type, ids.shape  # which Min hides
    return moved, op("Cast", op("Squeeze", length, axis), to=ir.DataType.INT64)
