"""Runs test_fused.py in Triton's interpreter, which must be chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the fused version needs triton: Linux on x86_64")


@pytest.mark.slow
def test_fused_kernels_in_the_interpreter() -> None:
    cases = Path(__file__).with_name("test_fused.py")
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, str(cases)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout, run.stdout
