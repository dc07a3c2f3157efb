"""How long `anna-export --help` takes; a Python that does nothing is in the samples.

python -m benchmarks.holds.startup  21 runs of each, in turn
python -m benchmarks.holds.startup --quick  5 runs
"""

import statistics
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

from benchmarks.lib.record import Figure, Results, main

TOOL = Path(sys.executable).with_name("anna-export")
COMMANDS = {
    "anna-export --help": [str(TOOL), "--help"],
    "anna-export embed --help": [str(TOOL), "embed", "--help"],
}
BASELINE = {"python -c pass": [sys.executable, "-c", "pass"]}
TARGET_MS = 300


def measure(arguments: Namespace) -> Results:
    """Run the benchmark."""
    commands = COMMANDS | BASELINE
    samples: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():  # once, so that every file is in the page cache
        _milliseconds(command)
    for _ in range(5 if arguments.quick else 21):
        for name, command in commands.items():
            samples[name].append(_milliseconds(command))
    figures = []
    for name in COMMANDS:
        median = statistics.median(samples[name])
        spread = (min(samples[name]), max(samples[name]))
        figures.append(
            Figure(f"{name}: time", median, "ms", f"<= {TARGET_MS}", median <= TARGET_MS, spread)
        )
    return Results(figures, samples)


def _milliseconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    sys.exit(main("startup", measure, quick="Five runs."))
