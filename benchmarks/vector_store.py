"""How much memory verify's stored vectors take: a corpus of a million texts.

python benchmarks/vector_store.py          1,000,000 texts of 1,024 values, 4.1 GB of disk
python benchmarks/vector_store.py --quick  100,000
"""

import argparse
import sys
import tempfile
from pathlib import Path

from record import Figure, record, say
from watched import run_watched

WORKER = Path(__file__).with_name("vector_store_worker.py")
DIM = 1024
# what mteb hands over at once in retrieval
CHUNK = 50_000
REACH_BYTES = 1 << 30


def main() -> int:
    """Embed the corpus in a process of its own, watch it, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100,000 texts.")
    parser.add_argument("--json", type=Path, help="Results file (default: a dated one).")
    arguments = parser.parse_args()
    samples = {}
    for texts in (100_000,) if arguments.quick else (100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            for what in ("empty", "embed", "read"):
                say(f"{what} {texts:,} texts")
                command = [sys.executable, WORKER, folder, what, texts, DIM, CHUNK]
                run = run_watched([str(part) for part in command])
                assert run.code == 0
                samples[f"{what} {texts:,}"] = {
                    "peak_anonymous_bytes": run.peak_anon_bytes,
                    "peak_mapped_bytes": run.peak_mapped_bytes,
                    "seconds": run.seconds,
                }
    figures = []
    for what, told in samples.items():
        if not what.startswith("empty"):
            idle = samples[f"empty {what.split()[1]}"]
            added = told["peak_anonymous_bytes"] - idle["peak_anonymous_bytes"]
            figures.append(
                Figure(
                    f"{what} texts: anonymous memory over an idle process", added / 2**20, "MiB",
                    f"<= {REACH_BYTES >> 20}", added <= REACH_BYTES,
                )
            )  # fmt: skip
    return record("vector-store", figures, samples, [], arguments.json)


if __name__ == "__main__":
    sys.exit(main())
