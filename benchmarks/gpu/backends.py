"""Artifacts in each runtime that has a GPU here: verified against PyTorch, then timed."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anna_export.choices import Target
from anna_export.spec import Precision
from benchmarks.lib.record import Figure, Results, python_module, say

PRECISIONS = (Precision.BF16, Precision.FP16, Precision.FP8)
SHAPES = ((1, 32), (32, 64), (32, 512))
_COMMAND = (sys.executable, "-c", "from anna_export.cli import main; main()")


@dataclass(frozen=True)
class Runtime:
    """What computes on the GPU.

    Args:
        name: What it is called.
        backend: Its --backend.
        high_precision: What an FP8 artifact for it keeps the rest in.
        target: What builds its engine; None where it needs none.
    """

    name: str
    backend: str
    high_precision: Precision
    target: Target | None = None

    def hindrance(self) -> str | None:
        """Say why it cannot run here, if it cannot."""
        if self.target is None:
            has_cuda = _onnxruntime_has_cuda()
            return None if has_cuda else "onnxruntime is not installed, or is its CPU build"
        module = self.target.replace("-", "_")
        missing = [name for name in (module, "cuda") if not find_spec(name)]
        return f"{', '.join(missing)} not installed" if missing else None


RUNTIMES = {
    # its CUDA provider rounds no bf16 to FP8
    "onnxruntime": Runtime("ONNX Runtime CUDA", "ort", Precision.FP16),
    "tensorrt": Runtime("TensorRT", "trt", Precision.BF16, Target.TENSORRT),
    "tensorrt-rtx": Runtime("TensorRT-RTX", "trt", Precision.BF16, Target.TENSORRT_RTX),
}


def measure_backend(
    runtime: Runtime,
    model: Path | None,
    artifacts: Path | None,
    precision: Precision,
    results: Results,
) -> None:
    """Export a checkpoint, build its engine, run `verify --device cuda`, and time it.

    Args:
        runtime: What computes.
        model: The checkpoint; without one nothing is run.
        artifacts: Where to keep what is exported and to look for it; None for nowhere.
        precision: One of PRECISIONS.
        results: Where to put what is found.
    """
    name = f"{runtime.name}, {precision}"
    missing = [
        name for name in ("onnx_ir", "pydantic", "rich", "tokenizers") if not find_spec(name)
    ]
    if model is None:
        results.skip(name, "no --model given to export")
    elif missing:
        results.skip(name, f"{', '.join(missing)} not installed")
    elif hindrance := runtime.hindrance():
        results.skip(name, hindrance)
    else:
        with tempfile.TemporaryDirectory() as folder:
            stem = f"{model.name}-{precision}-{runtime.high_precision}"
            artifact = (artifacts or Path(folder)) / stem
            _measure(results, runtime, model, precision, artifact)


def _measure(
    results: Results, runtime: Runtime, model: Path, precision: Precision, artifact: Path
) -> None:
    name = f"{runtime.name}, {precision}"
    if not artifact.exists():
        options = ["--model", str(model), "--out", str(artifact), f"--{precision}"]
        if precision is Precision.FP8:
            options += ["--high-precision", str(runtime.high_precision)]
        exported = _run([*_COMMAND, *options, "--no-verify", "--json"])
        if exported.returncode:
            results.skip(name, f"export failed: {_last(exported.stderr)}")
            return
    if runtime.target is not None:
        built = _run([*_COMMAND, "build", str(artifact), "--target", str(runtime.target), "--json"])
        if built.returncode:
            results.skip(name, f"build failed: {_last(built.stderr)}")
            return
        (engine,) = json.loads(built.stdout)["engines"].values()
        results.figures.append(
            Figure(
                f"{name}: entries of the fusion report",
                len(engine["fusion_report"]),
                "",
                "0",
                not engine["fusion_report"],
            )
        )
    backend = ["--backend", runtime.backend, "--device", "cuda"]
    options = [str(artifact), "--reference", str(model), *backend]
    proved = _run([*_COMMAND, "verify", *options, "--json"])
    if proved.returncode not in (0, 1):
        results.skip(name, f"verify: exit code {proved.returncode}: {_last(proved.stderr)}")
        return
    parity = json.loads(proved.stdout)
    results.samples[name] = {"parity": parity}
    vectors = parity["vectors"]
    results.figures.append(
        Figure(
            f"{name}, verify --tier vectors: worst cosine",
            vectors["worst_cosine"],
            "",
            "verdict pass",
            proved.returncode == 0,
        )
    )
    timed = _run(
        python_module("gpu._backend_worker", artifact, runtime.backend, json.dumps(SHAPES))
    )
    if timed.returncode:
        results.skip(f"{name}: time", f"exit code {timed.returncode}: {_last(timed.stderr)}")
        return
    rows: list[dict[str, Any]] = json.loads(timed.stdout)
    results.samples[name]["rows"] = rows
    for row in rows:
        results.figures.append(
            Figure(
                f"{name}, {row['batch']} x {row['tokens']}: tokens a second",
                row["tokens_per_second"],
                "tokens/s",
                "printed",
                row["tokens_per_second"] > 0,
            )
        )


def _onnxruntime_has_cuda() -> bool:
    code = "import onnxruntime as o; print('CUDAExecutionProvider' in o.get_available_providers())"
    return _run([sys.executable, "-c", code]).stdout.strip() == "True"


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run in a process of its own: a runtime that crashes takes only itself along."""
    say(" ".join(part for part in command[1:] if "import" not in part)[:200])
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    started = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    say(f"exit code {run.returncode} after {time.perf_counter() - started:.0f} s")
    return run


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-6:])[:800]
