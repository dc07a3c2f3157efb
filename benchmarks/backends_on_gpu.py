"""Artifacts in each runtime that has a GPU here: verified against PyTorch, then timed."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from record import Figure, Found, say

from anna_export.spec import Precision

PRECISIONS = {
    Precision.BF16: ["--bf16"],
    Precision.FP16: ["--fp16"],
    # ONNX Runtime's CUDA provider rounds no bf16 to FP8
    Precision.FP8: ["--fp8", "--high-precision", "fp16"],
}
SHAPES = ((1, 32), (32, 64), (32, 512))
_COMMAND = (sys.executable, "-c", "from anna_export.cli import main; main()")


def measure_backend(
    model: Path | None, artifacts: Path | None, precision: Precision, found: Found
) -> None:
    """Export a checkpoint, run `verify --device cuda`, and time it.

    Args:
        model: The checkpoint; without one nothing is run.
        artifacts: Where to keep what is exported and to look for it; None for nowhere.
        precision: One of PRECISIONS.
        found: Where to put what is found.
    """
    name = f"ONNX Runtime CUDA, {precision}"
    missing = [
        name for name in ("onnx_ir", "pydantic", "rich", "tokenizers") if not find_spec(name)
    ]
    if model is None:
        found.skip(name, "no --model given to export")
    elif missing:
        found.skip(name, f"{', '.join(missing)} not installed")
    elif not _onnxruntime_has_cuda():
        found.skip(name, "onnxruntime is not installed, or is its CPU build")
    else:
        with tempfile.TemporaryDirectory() as folder:
            artifact = (artifacts or Path(folder)) / f"{model.name}-{precision}"
            _measure(found, name, model, precision, artifact)


def _measure(found: Found, name: str, model: Path, precision: Precision, artifact: Path) -> None:
    if not artifact.exists():
        asked = ["--model", str(model), "--out", str(artifact), *PRECISIONS[precision]]
        made = _run([*_COMMAND, *asked, "--no-verify", "--json"])
        if made.returncode:
            found.skip(name, f"export failed: {_last(made.stderr)}")
            return
    asked = [str(artifact), "--reference", str(model), "--backend", "ort", "--device", "cuda"]
    proved = _run([*_COMMAND, "verify", *asked, "--json"])
    if proved.returncode not in (0, 1):
        found.skip(name, f"verify: exit code {proved.returncode}: {_last(proved.stderr)}")
        return
    parity = json.loads(proved.stdout)
    found.samples[name] = {"parity": parity}
    vectors = parity["vectors"]
    found.figures.append(
        Figure(
            f"{name}, verify --tier vectors: worst cosine",
            vectors["worst_cosine"],
            "",
            "verdict pass",
            proved.returncode == 0,
        )
    )
    worker = Path(__file__).with_name("backend_worker.py")
    timed = _run([sys.executable, str(worker), str(artifact), "ort", json.dumps(SHAPES)])
    if timed.returncode:
        found.skip(f"{name}: time", f"exit code {timed.returncode}: {_last(timed.stderr)}")
        return
    rows: list[dict[str, Any]] = json.loads(timed.stdout)
    found.samples[name]["rows"] = rows
    for row in rows:
        found.figures.append(
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
