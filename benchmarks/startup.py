"""How long `anna-export --help` takes; a Python that does nothing is in the samples.

python benchmarks/startup.py          21 runs of each, in turn
python benchmarks/startup.py --quick  5 runs
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from record import Figure, record

TOOL = Path(sys.executable).with_name("anna-export")
COMMANDS = {
    "anna-export --help": [str(TOOL), "--help"],
    "anna-export embed --help": [str(TOOL), "embed", "--help"],
}
BASELINE = {"python -c pass": [sys.executable, "-c", "pass"]}
REACH_MS = 300


def main() -> int:
    """Run the benchmark and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="Five runs.")
    parser.add_argument("--json", type=Path, help="Results file (default: a dated one).")
    arguments = parser.parse_args()
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
            Figure(f"{name}: time", median, "ms", f"<= {REACH_MS}", median <= REACH_MS, spread)
        )
    return record("startup", figures, samples, [], arguments.json)


def _milliseconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    sys.exit(main())
