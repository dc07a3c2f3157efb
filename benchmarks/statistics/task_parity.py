"""What `anna-export verify --tier quick` says of the demonstration's artifacts on MTEB tasks.

Needs `make demo`, whose artifacts are verified as they are, and once with a broken layer.

python -m benchmarks.statistics.task_parity --task-data DIR  a folder; 15 minutes for ten tasks
python -m benchmarks.statistics.task_parity --quick  the demonstration's docstring tasks, 4 minutes
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from anna_export.artifact.folder import open_artifact
from anna_export.artifact.manifest import hash_file, identity, write_manifest
from benchmarks.lib.record import Figure, Results, main, say

DEMO = Path(__file__).parents[2] / "build" / "demo"
TOOL = Path(sys.executable).with_name("anna-export")
ARTIFACTS = {"fp32": "artifact", "fp8": "artifact-fp8", "int8": "artifact-int8"}
BROKEN = "artifact-int4"
# exit codes of verify: no more than a verdict
VERDICTS = {0: "pass", 1: "fail", 3: "inconclusive"}


def measure(arguments: Namespace) -> Results:
    """Verify every artifact."""
    tasks = DEMO / "tasks" if arguments.quick else arguments.task_data
    if not (DEMO / BROKEN).is_dir() or not tasks.is_dir():
        not_run = [{"name": "all", "why": f"{DEMO} or {tasks} is missing; run make demo"}]
        return Results([], {}, not_run)
    figures: list[Figure] = []
    samples: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch) / "cache"
        for name, folder in ARTIFACTS.items():
            copy = Path(shutil.copytree(DEMO / folder, Path(scratch) / folder))
            parity = verify(copy, tasks, cache)
            samples[name] = parity
            tasks_report = parity["tasks"]
            failed = sum(task["verdict"] == "fail" for task in tasks_report["tasks"])
            mean = tasks_report["mean"]
            figures += [
                Figure(
                    f"{name}: tasks that fail, of {len(tasks_report['tasks'])}",
                    failed,
                    "",
                    "0",
                    failed == 0,
                ),
                Figure(
                    f"{name}: mean over tasks, difference ({tasks_report['verdict']})",
                    mean["difference"], "score", f"> -{mean['margin']:.4f}",
                    tasks_report["verdict"] != "fail", (mean["low"], mean["high"]),
                ),
            ]  # fmt: skip
        broken = break_layer(DEMO / BROKEN, Path(scratch) / "broken")
        samples["int4, a layer broken"] = parity = verify(broken, tasks, cache)
        says_fail = parity["verdict"] == "fail"
        figures.append(Figure("int4 with a broken layer: fails", says_fail, "", "1", says_fail))
    return Results(figures, samples)


def verify(artifact: Path, tasks: Path, cache: Path) -> dict[str, Any]:
    """Run the command, and return what it prints, with the verdict that its exit code says."""
    say(f"verify {artifact.name}")
    command = [TOOL, "verify", artifact, "--reference", DEMO / "base"]
    command += ["--adapter", DEMO / "adapter", "--tier", "quick", "--task-data", tasks]
    started = time.perf_counter()
    finished = subprocess.run(
        [*map(str, command), "--cache", str(cache), "--json"], stdout=subprocess.PIPE, check=False
    )
    parity: dict[str, Any] = json.loads(finished.stdout)
    assert VERDICTS[finished.returncode] == parity["verdict"]
    return parity | {"seconds": time.perf_counter() - started}


def break_layer(source: Path, folder: Path) -> Path:
    """Copy an int4 artifact; its second layer's 4-bit weights become noise, and all hashes hold."""
    shutil.copytree(source, folder)
    manifest = open_artifact(folder).manifest
    graph = onnx.load(folder / manifest.graphs["cpu"], load_external_data=False).graph
    path, noise = folder / "model.onnx.data", np.random.default_rng(0)
    content = bytearray(path.read_bytes())
    for tensor in graph.initializer:
        stored = {entry.key: entry.value for entry in tensor.external_data}
        packed = tensor.data_type == onnx.TensorProto.UINT8 and stored
        if tensor.name.startswith("layers.1.") and packed:
            start, length = int(stored["offset"]), int(stored["length"])
            content[start : start + length] = noise.bytes(length)
    path.write_bytes(bytes(content))
    files = {**manifest.files, path.name: hash_file(path)}
    changes = {"files": files, "artifact_id": identity(files, manifest.spec, manifest.framing)}
    write_manifest(folder, manifest.model_copy(update=changes))
    return folder


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--task-data", type=Path, default=DEMO / "tasks", help="Tasks and data.")


if __name__ == "__main__":
    sys.exit(main("task-parity", measure, quick="The docstring tasks.", options=_options))
