"""`make demo-real`: tune Gemma 3 270M on docstrings, export it in every precision, prove, measure.

Everything is made under build/demo-real and reused while what it was made from is the same.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from anna_export.console.output import stage
from anna_export.errors import AnnaError
from demo.output_cache import OutputCache
from demo.real import show
from demo.real.make import PRECISIONS, Maker, run

OUT = Path("build/demo-real")
# MTEB test data beside the checkout
BESIDE = Path("../shared/mteb")


def main(args: Sequence[str] = ()) -> int:
    """Run the demonstration and return its exit code."""
    arguments = _arguments(args)
    started = time.perf_counter()
    maker = Maker(OutputCache(OUT), stage)
    base = maker.base()
    tasks, adapter = maker.tasks(), maker.adapter(base)
    artifacts = {
        precision: maker.artifact(precision, base, adapter, tasks) for precision in PRECISIONS
    }
    scored = {
        "untuned": maker.artifact("fp32", base, None, tasks),
        show.TUNED: artifacts["fp32"],
        f"{show.TUNED}, int8": artifacts["int8"],
    }
    scores = maker.scores(scored, arguments.task_data)
    run("report", *artifacts.values(), "--out", OUT / "report.html", "--overwrite")
    show.result(scores, artifacts)
    if arguments.record:
        path = show.record(scores, artifacts, adapter, maker.cache.seconds)
        print(f"\nrecorded in {path}")
    print(f"\nin all {time.perf_counter() - started:.0f} s; the page: {OUT / 'report.html'}")
    return 0


def _arguments(args: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo.real", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--task-data",
        type=Path,
        default=BESIDE if BESIDE.is_dir() else None,
        help=f"Folder of MTEB test data: STS-B, Banking77. Default: {BESIDE}.",
    )
    parser.add_argument(
        "--record", action="store_true", help="Write the figures into benchmarks/results."
    )
    return parser.parse_args(args)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except AnnaError as error:
        sys.exit(f"demo-real: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
