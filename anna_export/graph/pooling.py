"""The pooling node: an operator of our own whose body is standard operators.

Runtimes without the operator inline the body; TensorRT replaces the node by a kernel through its
plugin, which is what the attributes `plugin_namespace` and `aot` ask for.
"""

import onnx_ir as ir

DOMAIN = "anna"
NAME = "LastTokenPoolNormalize"
SMALLEST_NORM = 1e-12


def pool_normalize_function(opset: int) -> ir.Function:
    """Return the function of hidden (B, S, D) and last (B,) int64 → (B, D) float32, unit L2 length.

    A zero row stays zero. Source: the "lasttoken" mode of sentence-transformers' Pooling followed
    by its Normalize.
    """
    hidden, last = ir.val("hidden"), ir.val("last")
    tape = ir.tape.Tape()

    def constant(value: ir.TensorProtocol) -> ir.Value:
        return tape.op("Constant", [], {"value": value})

    axis = constant(ir.tensor([-1], dtype=ir.DataType.INT64))
    index = tape.op("Unsqueeze", [last, axis])
    row = tape.op("GatherND", [hidden, index], {"batch_dims": 1})
    row = tape.op("Cast", [row], {"to": ir.DataType.FLOAT})
    norm = tape.op("ReduceL2", [row, axis], {"keepdims": 1})
    smallest = constant(ir.tensor(SMALLEST_NORM, dtype=ir.DataType.FLOAT))
    output = tape.op("Div", [row, tape.op("Max", [norm, smallest])])
    output.name = "embedding"
    body = ir.Graph(
        [hidden, last], [output], nodes=tape.nodes, opset_imports={"": opset}, name=NAME
    )
    return ir.Function(DOMAIN, NAME, graph=body, attributes=[])
