#!/usr/bin/env bash
# onnx-ir 1.1.0: Model.clone() and Graph.clone(), also with deep_copy=True.
#
# One would guess: a change of a value in the clone leaves the original alone. Values, nodes and shapes are
# copies, and tensors, which are shared, cannot be changed.
# What happens: a value's type object is shared as well, and `value.dtype = X` changes that object in place.
# So a pass that sets the dtype of a value in the clone also sets it in the original. `value.type = TensorType(X)`
# does not.
#
# Seen (2026-12-01): after clone.graph.inputs[0].dtype = FLOAT16, the original's input says FLOAT16.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check onnx-ir==1.1.0 onnx==1.23.2
"$dir/venv/bin/python" - <<'PY'
import onnx_ir as ir


def model():
    x = ir.val("x", ir.DataType.FLOAT, ["N"])
    tape = ir.tape.Tape()
    y = tape.op("Relu", [x])
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=tape.nodes, opset_imports={"": 23})
    return ir.Model(graph, ir_version=11)


for deep_copy in (False, True):
    original = model()
    clone = original.clone(deep_copy=deep_copy)
    assert clone.graph.inputs[0] is not original.graph.inputs[0]
    assert clone.graph.inputs[0].shape is not original.graph.inputs[0].shape
    clone.graph.inputs[0].dtype = ir.DataType.FLOAT16
    clone.graph[0].outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    print(
        f"deep_copy={deep_copy}: the original's input is {original.graph.inputs[0].dtype}, "
        f"its output {original.graph.outputs[0].dtype}"
    )
    assert original.graph.inputs[0].dtype is ir.DataType.FLOAT16, "clones have types of their own now"
    assert original.graph.outputs[0].dtype is ir.DataType.FLOAT
PY
