"""Run every benchmark, one after the other, and print one table.

    python -m benchmarks.run  two and a half hours, and 32 GB of disk while it lasts
    python -m benchmarks.run --quick  each at most five minutes, smaller

Each writes its own file into benchmarks/results, or into the folder given by --results.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser
from datetime import date
from pathlib import Path

from benchmarks.lib.record import RESULTS, Figure, print_table, python_module

BENCHMARKS = (
    "holds.startup",
    "decided.lowering",
    "decided.int8_forms",
    "decided.prefix_forms",
    "decided.prefix_precision",
    "holds.prefix",
    "decided.int4",
    "decided.precision",
    "holds.latency",
    "holds.quantised",
    "holds.scale",
    "holds.proof_memory",
    "holds.training",
    "statistics.bootstrap",
    "statistics.task_parity",
    "holds.vector_store",
    "gpu.pooling_kernel",
    "holds.engines",
    "holds.serving",
    "statistics.agreement",
)


def main() -> int:
    """Run the benchmarks and return 0 if every figure of every one holds."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="At most five minutes each.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Folder of the results.")
    arguments = parser.parse_args()
    codes, tables = {}, {}
    for name in BENCHMARKS:
        print(f"{name}:", file=sys.stderr)
        folder = arguments.results / name.rpartition(".")[2].replace("_", "-")
        path = folder / f"{date.today().isoformat()}.json"
        command = python_module(name, "--json", path, *(["--quick"] if arguments.quick else []))
        codes[name] = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        if codes[name] in (0, 1):
            tables[name] = json.loads(path.read_text(encoding="utf-8"))
    for name in BENCHMARKS:
        print(f"\n{name}" + ("" if name in tables else f": failed with exit code {codes[name]}"))
        if name in tables:
            figures = [Figure(**figure) for figure in tables[name]["figures"]]
            print_table(figures, tables[name]["not_run"])
    return int(any(codes.values()))


if __name__ == "__main__":
    sys.exit(main())
