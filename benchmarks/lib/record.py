"""What every benchmark writes: figures with the hardware and versions they were measured on."""

import json
import os
import platform
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from anna_export.machine.hardware import hardware
from anna_export.machine.versions import installed

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Args:
        name: What was measured.
        value: The median, where it was measured more than once.
        unit: Of the value; "x" for a ratio.
        target: What it should be, such as "<= 1.5".
        holds: Whether it is.
        spread: Smallest and largest measurement; None for a single one.
        bound: The value that counting operations and bytes leaves possible; None if not counted.
    """

    name: str
    value: float
    unit: str
    target: str
    holds: bool
    spread: tuple[float, float] | None = None
    bound: float | None = None


@dataclass(slots=True)
class Results:
    """What a benchmark measured.

    Args:
        figures: The numbers.
        samples: Every raw measurement.
        not_run: {"name", "why"} of what could not be measured.
        name: The results' folder, where options decide it; None for the benchmark's name.
        chart: What draws them into an SVG file; None for no chart.
    """

    figures: list[Figure] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    not_run: list[dict[str, str]] = field(default_factory=list)
    name: str | None = None
    chart: Callable[[Path], None] | None = None

    def skip(self, name: str, why: str) -> None:
        """Say that something could not be run."""
        self.not_run.append({"name": name, "why": why})

    @property
    def hold(self) -> bool:
        """Whether there are figures and every one of them holds."""
        return bool(self.figures) and all(figure.holds for figure in self.figures)


def main(
    name: str,
    measure: Callable[[Namespace], Results],
    *,
    quick: str,
    options: Callable[[ArgumentParser], None] | None = None,
) -> int:
    """Run a benchmark from its command line, write and print what it measured.

    Args:
        name: The benchmark's, and its folder's in benchmarks/results.
        measure: Takes the parsed options.
        quick: What --quick leaves out, as help.
        options: Adds the benchmark's own options to --quick and --json.

    Returns:
        The exit code: 0 if every figure holds; 1 if one does not, or there is none.
    """
    parser = ArgumentParser(description=(sys.modules["__main__"].__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, help="Results file (default: a dated one).")
    if options is not None:
        options(parser)
    arguments = parser.parse_args()
    results = measure(arguments)
    path = write(name, results, arguments.json)
    if results.chart is not None:
        results.chart(path.with_suffix(".svg"))
    return report(results, path)


def report(results: Results, path: Path) -> int:
    """Print results that were written to a file, and return the exit code."""
    print_table(results.figures, results.not_run)
    say(f"written to {path}")
    return 0 if results.hold else 1


def write(name: str, results: Results, path: Path | None) -> Path:
    """Write results to a file and return it: benchmarks/results/NAME/DATE.json if none is named."""
    path = path or RESULTS / (results.name or name) / f"{date.today().isoformat()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(),
        "versions": installed(),
        "figures": [asdict(figure) for figure in results.figures],
        "samples": results.samples,
        "not_run": results.not_run,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "hardware": hardware(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def print_table(figures: list[Figure], not_run: list[dict[str, str]]) -> None:
    """Print one line a figure, with its target and whether it holds."""
    for figure in figures:
        spread = ""
        if figure.spread is not None:
            spread = f"  ({figure.spread[0]:.4g} to {figure.spread[1]:.4g})"
        bound = "" if figure.bound is None else f"  (bound {figure.bound:.4g})"
        verdict = "holds" if figure.holds else "DOES NOT HOLD"
        print(
            f"{figure.name:56} {figure.value:12.6g} {figure.unit:8} {figure.target:12} "
            f"{verdict}{spread}{bound}"
        )
    for skipped in not_run:
        print(f"{skipped['name']:56} not run: {skipped['why']}")


def models_option(parser: ArgumentParser) -> None:
    """Add the folder in which the demo's models are, or are made."""
    parser.add_argument(
        "--models", type=Path, default=Path("build/demo"), help="Demo's folder (build/demo)."
    )


def python_module(name: str, *arguments: object) -> list[str]:
    """Return the command of a benchmark's own process: a module of benchmarks, with arguments."""
    return [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]


def say(text: str) -> None:
    """Print a line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)
