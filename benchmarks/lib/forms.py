"""Loading a few recorded nodes, as the benchmarks of single operators do."""

from collections.abc import Sequence

import onnx_ir as ir
import onnxruntime

from anna_export.graph.builder import IR_VERSION, OPSET
from anna_export.graph.passes.cpu_attention import DOMAIN


def load(
    inputs: Sequence[ir.Value], output: ir.Value, tape: ir.tape.Tape
) -> onnxruntime.InferenceSession:
    """Load what was recorded on a tape for the CPU, in two threads."""
    graph = ir.Graph(
        inputs,
        [output],
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": OPSET, DOMAIN: 1},
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    content = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
