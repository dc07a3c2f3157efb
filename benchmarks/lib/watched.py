"""Run a command and watch its time and memory."""

import resource
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Run:
    """One finished process."""

    seconds: float
    cpu_seconds: float
    peak_anon_bytes: int
    peak_mapped_bytes: int
    code: int
    output: str


def run_watched(
    command: list[str],
    address_space_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """Run a command and watch its memory; None for an environment is this process's."""

    def limit() -> None:
        if address_space_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes, address_space_bytes))

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=limit, env=environment
    )
    peaks = {"RssAnon": 0, "RssFile": 0}
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks), daemon=True)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, cpu, peaks["RssAnon"], peaks["RssFile"], process.returncode, output)


def run_checked(command: list[str]) -> Run:
    """Run a command and watch it; end the program if it fails."""
    run = run_watched(command)
    if run.code != 0:
        sys.exit(f"expected {' '.join(command[1:3])} to succeed, found exit code {run.code}")
    return run


def _watch(pid: int, peaks: dict[str, int]) -> None:
    while True:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        sizes = {
            line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")
        }
        if not sizes:  # a zombie has no memory
            return
        for name in peaks:
            peaks[name] = max(peaks[name], int(sizes[name]) * 1024)
        time.sleep(0.02)
