"""Run every benchmark, one after the other, and print one table.

    python benchmarks/everything.py          two and a half hours, and 32 GB of disk while it lasts
    python benchmarks/everything.py --quick  each at most five minutes, smaller

Each writes its own file into benchmarks/results, or into the folder given by --results.
"""

import argparse
import json
import subprocess
import sys
from datetime import date
from pathlib import Path

from record import RESULTS, Figure, print_table

BENCHMARKS = (
    "startup",
    "lowering",
    "int8_forms",
    "prefix_forms",
    "prefix_precision",
    "prefix",
    "int4",
    "precision",
    "latency",
    "quantised",
    "scale",
    "training",
    "bootstrap",
    "task_parity",
    "vector_store",
    "pooling_kernel",
    "engines",
    "serving",
    "agreement",
)


def main() -> int:
    """Run the benchmarks and return 0 if every figure of every one holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="At most five minutes each.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Folder of the results.")
    arguments = parser.parse_args()
    codes, tables = {}, {}
    for name in BENCHMARKS:
        print(f"{name}:", file=sys.stderr)
        path = arguments.results / f"{date.today().isoformat()}-{name}.json"
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--json", str(path)]
        command += ["--quick"] if arguments.quick else []
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
