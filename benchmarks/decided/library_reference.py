"""What a reference that its own libraries run costs a proof, against one of our own reading.

    python -m benchmarks.decided.library_reference  five rounds of the demo's fp32 and int8
    python -m benchmarks.decided.library_reference --quick  three, fp32 alone

Each round runs `anna-export verify` from this tree and from a worktree of the last commit before
the reference changed, in turn and on one thread, on an artifact of the demo's model that each
exported itself. Time is the command's whole, loading the libraries included; CPU time, as other
work on a machine moves the clock.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from anna_export.console.output import stage
from anna_export.text.prompt_file import ADAPTERS_FILE
from benchmarks.lib.record import Figure, Results, main, models_option, say
from benchmarks.lib.watched import Run, run_watched
from demo.models import make_models

BEFORE: Final = "3f1920a"
MOST: Final = 1.5
_ROOT: Final = Path(__file__).parents[2]
# another tree than the one that is meant would compare a source with itself
_TOOL: Final = """
import os, sys, anna_export
assert anna_export.__file__.startswith(os.environ["PYTHONPATH"])
from anna_export.cli import main
sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class _Side:
    """A tree of the source, and the artifact that it exported."""

    tree: Path
    artifact: Path
    base: Path
    adapter: Path

    def run(self, *arguments: object) -> Run:
        """Run the tree's own anna-export on one thread; end the program if it fails."""
        command = [sys.executable, "-P", "-c", _TOOL, *map(str, arguments)]
        command += ["--adapter", str(self.adapter), "--json"]
        environment = os.environ | {"PYTHONPATH": str(self.tree), "OMP_NUM_THREADS": "1"}
        run = run_watched(command, environment=environment)
        if run.code != 0:
            sys.exit(f"expected {arguments[0]} of {self.tree} to pass, found code {run.code}")
        return run

    def export(self, precision: str) -> None:
        model = ("--model", self.base)
        self.run("export", *model, "--out", self.artifact, f"--{precision}", "--no-verify")

    def prove(self) -> Run:
        return self.run("verify", self.artifact, "--reference", self.base)


def measure(arguments: Namespace) -> Results:
    """Export by both trees, and prove in turn."""
    models = make_models(arguments.models, stage=stage)
    results = Results()
    with _worktree(arguments.before) as before, tempfile.TemporaryDirectory() as temporary:
        adapter = Path(temporary) / "adapter"
        _copy_adapter(models.adapter, adapter)
        for precision in ("fp32",) if arguments.quick else ("fp32", "int8"):
            folder = Path(temporary) / precision
            ours = _Side(_ROOT, folder / "ours", models.base, adapter)
            theirs = _Side(before, folder / "before", models.base, adapter)
            for side in (ours, theirs):
                side.export(precision)
                side.prove()  # once, so that every file is in the page cache
            pairs = [(ours.prove(), theirs.prove()) for _ in range(3 if arguments.quick else 5)]
            _add(results, precision, pairs)
    results.samples["before"] = arguments.before
    return results


def _copy_adapter(source: Path, folder: Path) -> None:
    """Copy an adapter, without a field of its prompts that an earlier source does not know."""
    shutil.copytree(source, folder)
    path = folder / ADAPTERS_FILE
    prompts = json.loads(path.read_text(encoding="utf-8"))
    for task in prompts["tasks"].values():
        task.pop("document", None)
    path.write_text(json.dumps(prompts), encoding="utf-8")


def _add(results: Results, precision: str, pairs: list[tuple[Run, Run]]) -> None:
    """Add the ratio of every pair, and the seconds and memory behind them."""
    ratios = [ours.cpu_seconds / theirs.cpu_seconds for ours, theirs in pairs]
    ratio, spread = statistics.median(ratios), (min(ratios), max(ratios))
    name = f"{precision}: proof's CPU time over that before"
    results.figures.append(Figure(name, ratio, "x", f"<= {MOST}", ratio <= MOST, spread))
    results.samples[precision] = {
        name: {
            "seconds": [run.seconds for run in runs],
            "cpu_seconds": [run.cpu_seconds for run in runs],
            "peak_anon_bytes": [run.peak_anon_bytes for run in runs],
        }
        for name, runs in zip(("now", "before"), zip(*pairs, strict=True), strict=True)
    }
    say(f"{precision}: {ratios}")


@contextmanager
def _worktree(commit: str) -> Iterator[Path]:
    """Give a folder with the source as of a commit."""
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "before"
        git = ["git", "-C", str(_ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def _options(parser: ArgumentParser) -> None:
    models_option(parser)
    parser.add_argument(
        "--before", default=BEFORE, help=f"Commit that is compared with (default: {BEFORE})."
    )


if __name__ == "__main__":
    sys.exit(
        main("library-reference", measure, quick="Three rounds, fp32 alone.", options=_options)
    )
