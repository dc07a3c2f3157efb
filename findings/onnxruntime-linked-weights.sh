#!/usr/bin/env bash
# onnxruntime 1.23.2, 1.24.1 and 1.32.0: a graph with external weights whose files are links.
#
# One would guess: a path is opened as any program opens it, links followed, as up to 1.23.
# What happens: since 1.24 the weights' real path must lie in the folder of the graph as it was named, so a model as
# huggingface_hub lays it out (both files links into blobs/) is refused. By 1.32 the folder of the graph's real path
# will do too: that layout loads again, but not one with a folder for each file (Nix, git-annex), nor a graph that is
# a file beside weights that are a link. All of them load, mapped as before, where the session is given the graph's
# bytes, with the weights' real name as `location`, and their real folder as
# session.model_external_initializers_file_folder_path.
#
# Seen (2026-12-01), x86-64:
#   layout            1.23.2   1.24.1   1.32.0   by bytes, in each
#   blobs/ of a hub   loads    refused  loads    loads
#   a folder a file   loads    refused  refused  loads
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
cat > load.py <<'PY'
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

FOLDER = "session.model_external_initializers_file_folder_path"
SEEN = {"1.23.2": ("loads", "loads"), "1.24.1": ("refused", "refused"), "1.32.0": ("loads", "refused")}


def write(graph: Path, weights: Path) -> None:
    for path in (graph, weights):
        path.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(np.ones((64, 64), np.float32).tobytes())
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[64, 64], data_location=1)
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(4 * 64 * 64))):
        tensor.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, 1, [1, 64]) for name in "xy")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [x], [y], [tensor]), ir_version=10)
    model.opset_import[0].version = 21
    graph.write_bytes(model.SerializeToString())


def outcome(model, options) -> str:
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        assert "External data path" in str(error), error
        return "refused"
    assert session.run(None, {"x": np.ones((1, 64), np.float32)})[0][0, 0] == 64
    return "loads"


def by_bytes(folder: Path) -> str:
    model, weights = onnx.load(folder / "graph.onnx", load_external_data=False), (folder / "weights.bin").resolve()
    model.graph.initializer[0].external_data[0].value = weights.name
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(FOLDER, str(weights.parent))
    return outcome(model.SerializeToString(), options)


root, version = Path(sys.argv[1]).resolve(), onnxruntime.__version__
layouts = {"hub": ("blobs/a", "blobs/b"), "store": ("store/a/graph", "store/b/weights")}
for (name, (graph, weights)), expected in zip(layouts.items(), SEEN[version]):
    write(root / name / graph, root / name / weights)
    folder = root / name / "model"
    folder.mkdir()
    (folder / "graph.onnx").symlink_to(root / name / graph)
    (folder / "weights.bin").symlink_to(root / name / weights)
    by_path = outcome(str(folder / "graph.onnx"), onnxruntime.SessionOptions())
    print(f"{version} {name}: by path {by_path}, by bytes {by_bytes(folder)}")
    assert by_path == expected and by_bytes(folder) == "loads", "this has changed"
PY
for version in 1.23.2 1.24.1 1.32.0; do
    python3 -m venv "$version"
    "$version/bin/pip" install -q --no-compile --disable-pip-version-check "onnxruntime==$version" "onnx==1.20.0" numpy
    "$version/bin/python" load.py "$version.files"
done
