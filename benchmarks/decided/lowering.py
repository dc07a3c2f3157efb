"""The graph lowered for a CPU against the canonical one, in ONNX Runtime: time and memory.

    python -m benchmarks.decided.lowering  five rounds, up to 4,096 tokens; about 10 minutes
    python -m benchmarks.decided.lowering --quick  three rounds, up to 1,024 tokens

A random model of 164 M parameters beside its embedding (hidden 1024, FFN 3584, 12 layers, 16/4
heads of 64). Each measurement is a process of its own, the two graphs in turn.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from anna_export.graph.external_data import write_data_file
from anna_export.graph.names import CANONICAL, CPU
from anna_export.quantise.fp32 import SCHEME
from anna_export.weights.checkpoint import Checkpoint
from benchmarks.baselines.job import peak_bytes
from benchmarks.lib.record import Figure, Results, main, python_module
from benchmarks.lib.small_model import write_small_model

SHAPES = ((1, 16), (8, 64), (1, 1024), (1, 2048), (1, 4096))


def measure(arguments: Namespace) -> Results:
    """Run the benchmark."""
    rounds = 3 if arguments.quick else 5
    shapes = [shape for shape in SHAPES if not arguments.quick or shape[1] <= 1024]
    with tempfile.TemporaryDirectory(prefix="anna-lowering-") as name:
        graphs = _write_graphs(Path(name))
        samples: dict[str, dict[str, list[dict[str, float]]]] = {
            f"{batch}x{length}": {target: [] for target in graphs} for batch, length in shapes
        }
        for _ in range(rounds):
            for batch, length in shapes:
                for target, path in graphs.items():
                    samples[f"{batch}x{length}"][target].append(_worker(path, batch, length))
    figures = []
    for shape, runs in samples.items():
        pairs = list(zip(runs[CANONICAL], runs[CPU], strict=True))
        for key, quantity in (("seconds", "time"), ("peak_bytes", "peak memory")):
            ratios = [plain[key] / lowered[key] for plain, lowered in pairs]
            median = statistics.median(ratios)
            figures.append(
                Figure(
                    f"{shape}: {quantity} of the canonical over the lowered graph",
                    median,
                    "x",
                    ">= 0.95",
                    median >= 0.95,
                    (min(ratios), max(ratios)),
                )
            )
    return Results(figures, samples)


def _write_graphs(folder: Path) -> dict[str, Path]:
    write_small_model(folder / "base")
    graphs = SCHEME.graphs(Checkpoint.open(folder / "base"), 4096)
    write_data_file(folder, graphs)
    paths = {target: folder / f"{target}.onnx" for target in graphs}
    for target, model in graphs.items():
        ir.save(model, paths[target])
    return paths


def _worker(graph: Path, batch: int, length: int) -> dict[str, float]:
    command = python_module("decided.lowering", "--worker", graph, batch, length)
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(finished.stdout)


def _time_once(graph: Path, batch: int, length: int) -> dict[str, float]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    feeds = {
        "input_ids": generator.integers(3, 32000, (batch, length)),
        "attention_mask": np.ones((batch, length), dtype=np.int64),
    }
    session.run(None, feeds)
    repeats = 5 if batch * length <= 512 else 1
    started = time.perf_counter()
    for _ in range(repeats):
        session.run(None, feeds)
    seconds = (time.perf_counter() - started) / repeats
    return {"seconds": seconds, "peak_bytes": float(peak_bytes())}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--worker", graph, batch, length]:
            print(json.dumps(_time_once(Path(graph), int(batch), int(length))))
        case _:
            sys.exit(main("lowering", measure, quick="Three rounds, up to 1,024 tokens."))
