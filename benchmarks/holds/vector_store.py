"""How much memory verify's stored vectors take: a corpus of a million texts.

python -m benchmarks.holds.vector_store  1,000,000 texts of 1,024 values, 4.1 GB of disk
python -m benchmarks.holds.vector_store --quick  100,000
"""

import sys
import tempfile
from argparse import Namespace

from benchmarks.lib.record import Figure, Results, main, python_module, say
from benchmarks.lib.watched import run_watched

DIM = 1024
# what mteb hands over at once in retrieval
CHUNK = 50_000
TARGET_BYTES = 1 << 30


def measure(arguments: Namespace) -> Results:
    """Embed the corpus in a process of its own, watch it,."""
    samples = {}
    for texts in (100_000,) if arguments.quick else (100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            for task in ("empty", "embed", "read"):
                say(f"{task} {texts:,} texts")
                worker = "holds._vector_store_worker"
                run = run_watched(python_module(worker, folder, task, texts, DIM, CHUNK))
                assert run.code == 0
                samples[f"{task} {texts:,}"] = {
                    "peak_anonymous_bytes": run.peak_anon_bytes,
                    "peak_mapped_bytes": run.peak_mapped_bytes,
                    "seconds": run.seconds,
                }
    figures = []
    for task, sample in samples.items():
        if not task.startswith("empty"):
            idle = samples[f"empty {task.split()[1]}"]
            added = sample["peak_anonymous_bytes"] - idle["peak_anonymous_bytes"]
            figures.append(
                Figure(
                    f"{task} texts: anonymous memory over an idle process", added / 2**20, "MiB",
                    f"<= {TARGET_BYTES >> 20}", added <= TARGET_BYTES,
                )
            )  # fmt: skip
    return Results(figures, samples)


if __name__ == "__main__":
    sys.exit(main("vector-store", measure, quick="100,000 texts."))
