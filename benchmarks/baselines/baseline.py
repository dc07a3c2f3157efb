"""A baseline: what is asked of it, in a process and where needed an environment of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.baselines import environments
from benchmarks.baselines.job import Job

PROCESS_SECONDS = 900
ROOT = Path(__file__).parents[2].absolute()


@dataclass(frozen=True, slots=True)
class Baseline:
    """One side of the comparison: a baseline, or ours.

    Args:
        name: As printed.
        module: In `baselines`.
        variant: Which of the module's baselines.
        environment: One of `baselines`' own; None for this one.
        mean_target: Our throughput over its, geometric mean over shapes.
        every_target: The same at every shape.
        parity: Whether ours has to be as close to PyTorch in fp32.
    """

    name: str
    module: str
    variant: str
    environment: str | None = None
    mean_target: float | None = None
    every_target: float | None = None
    parity: bool = False


class BaselineError(Exception):
    """A baseline that could not be made or run; its message is the last line it wrote."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A baseline that can be asked.

    Args:
        baseline: Which.
        python: Of its environment.
        job: The path of its job.
        threads: CPU threads, for runtimes that read them from the environment.
    """

    baseline: Baseline
    python: Path
    job: Path
    threads: int

    def ask(self, task: str) -> dict[str, Any]:
        """Run one task in a process of its own and return the answer.

        Raises:
            BaselineError: If it fails.
        """
        answer = self.job.with_suffix(f".{task}.json")
        module = f"benchmarks.baselines.{self.baseline.module}"
        command = [str(self.python), "-m", module, task, str(self.job), str(answer)]
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
        variables = quiet | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(self.threads),
        }
        run(command, variables)
        return json.loads(answer.read_text(encoding="utf-8"))


def make(baseline: Baseline, job: Job, folder: Path, say: Callable[[str], None]) -> Ready:
    """Make a baseline's environment and what it serves, in a folder of its name.

    Raises:
        BaselineError: If that fails.
    """
    python = Path(sys.executable)
    if baseline.environment is not None:
        try:
            python = environments.python_of(baseline.environment, say).absolute()
        except subprocess.CalledProcessError as error:
            raise BaselineError(_last_line(error.stderr)) from None
    path = folder / f"{baseline.name}.job"
    replace(job, served=folder / baseline.name, variant=baseline.variant).write(path)
    ready = Ready(baseline, python, path, job.threads)
    say(f"converting: {baseline.name}")
    ready.ask("convert")
    return ready


def run(command: Sequence[str], variables: dict[str, str]) -> str:
    """Run a command and return what it prints.

    Raises:
        BaselineError: If it fails, with the last line of what it said.
    """
    try:
        finished = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | variables,
            timeout=PROCESS_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        why = _last_line(error.stderr)
        raise BaselineError(f"{why} (exit code {error.returncode})") from None
    except subprocess.TimeoutExpired:
        raise BaselineError(f"not done after {PROCESS_SECONDS} s") from None
    return finished.stdout


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "silence")
