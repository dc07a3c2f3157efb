"""Runs the fused kernels' cases in Triton's interpreter, chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the fused version needs triton: Linux on x86_64")


@pytest.mark.slow
def test_fused_kernels_in_the_interpreter() -> None:
    cases = [Path(__file__).with_name(name) for name in ("test_fused.py", "test_mean_fused.py")]
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *map(str, cases)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout, run.stdout
