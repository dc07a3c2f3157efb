"""A contender: what is asked of it, in a process and where needed an environment of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rivals import environments
from rivals.job import Job

PROCESS_SECONDS = 900
BENCHMARKS = Path(__file__).parent.parent.absolute()


@dataclass(frozen=True, slots=True)
class Contender:
    """One side of the comparison.

    Args:
        name: As printed.
        module: In `rivals`.
        variant: Which of the module's contenders.
        environment: One of `rivals`' own; None for this one.
        mean_reach: Our throughput over its, geometric mean over shapes.
        every_reach: The same at every shape.
        parity: Whether ours has to be as close to PyTorch in fp32.
    """

    name: str
    module: str
    variant: str
    environment: str | None = None
    mean_reach: float | None = None
    every_reach: float | None = None
    parity: bool = False


class ContenderError(Exception):
    """A contender that could not be made or run; its message is the last line it wrote."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A contender that can be asked.

    Args:
        contender: Which.
        python: Of its environment.
        job: The path of its job.
        threads: CPU threads, for runtimes that read them from the environment.
    """

    contender: Contender
    python: Path
    job: Path
    threads: int

    def ask(self, task: str) -> dict[str, Any]:
        """Run one task in a process of its own and return the answer.

        Raises:
            ContenderError: If it fails.
        """
        answer = self.job.with_suffix(f".{task}.json")
        module = f"rivals.{self.contender.module}"
        command = [str(self.python), "-m", module, task, str(self.job), str(answer)]
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
        variables = quiet | {
            "PYTHONPATH": str(BENCHMARKS),
            "OMP_NUM_THREADS": str(self.threads),
        }
        run(command, variables)
        return json.loads(answer.read_text(encoding="utf-8"))


def make(contender: Contender, job: Job, folder: Path, say: Callable[[str], None]) -> Ready:
    """Make a contender's environment and what it serves, in a folder of its name.

    Raises:
        ContenderError: If that fails.
    """
    python = Path(sys.executable)
    if contender.environment is not None:
        try:
            python = environments.python_of(contender.environment, say).absolute()
        except subprocess.CalledProcessError as error:
            raise ContenderError(_last_line(error.stderr)) from None
    path = folder / f"{contender.name}.job"
    replace(job, served=folder / contender.name, variant=contender.variant).write(path)
    ready = Ready(contender, python, path, job.threads)
    say(f"converting: {contender.name}")
    ready.ask("convert")
    return ready


def run(command: Sequence[str], variables: dict[str, str]) -> str:
    """Run a command and return what it prints.

    Raises:
        ContenderError: If it fails, with the last line of what it said.
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
        raise ContenderError(f"{why} (exit code {error.returncode})") from None
    except subprocess.TimeoutExpired:
        raise ContenderError(f"not done after {PROCESS_SECONDS} s") from None
    return finished.stdout


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "silence")
