"""What every benchmark writes: figures with the hardware and versions they were seen on."""

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from anna_export.machine.hardware import hardware
from anna_export.machine.versions import installed

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Args:
        name: What was measured.
        value: The median, where it was measured more than once.
        unit: Of the value; "x" for a ratio.
        reach: What it should be, such as "<= 1.5".
        holds: Whether it is.
        spread: Smallest and largest seen; None for a single measurement.
        bound: The value that counting operations and bytes leaves possible; None if not counted.
    """

    name: str
    value: float
    unit: str
    reach: str
    holds: bool
    spread: tuple[float, float] | None = None
    bound: float | None = None


@dataclass(slots=True)
class Found:
    """Figures, raw samples, and what could not be run."""

    figures: list[Figure] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    not_run: list[dict[str, str]] = field(default_factory=list)

    def skip(self, name: str, why: str) -> None:
        """Say that something could not be run."""
        self.not_run.append({"name": name, "why": why})


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "hardware": hardware(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def record(
    name: str,
    figures: list[Figure],
    samples: dict[str, Any],
    not_run: list[dict[str, str]],
    path: Path | None,
) -> int:
    """Write the figures to a file, print them as a table, and return the exit code.

    Args:
        name: The benchmark's, for the default file name.
        figures: What was measured.
        samples: Every raw measurement.
        not_run: {"name", "why"} of what could not be.
        path: The file; None for a dated one in benchmarks/results.

    Returns:
        0 if every figure holds; 1 if one does not, or there is none.
    """
    path = write(name, figures, samples, not_run, path)
    print_table(figures, not_run)
    print(f"written to {path}", file=sys.stderr)
    return 0 if figures and all(figure.holds for figure in figures) else 1


def write(
    name: str,
    figures: list[Figure],
    samples: dict[str, Any],
    not_run: list[dict[str, str]],
    path: Path | None,
) -> Path:
    """Write the figures to a file and return it; arguments as `record`."""
    path = path or RESULTS / f"{date.today().isoformat()}-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(),
        "versions": installed(),
        "figures": [asdict(figure) for figure in figures],
        "samples": samples,
        "not_run": not_run,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def print_table(figures: list[Figure], not_run: list[dict[str, str]]) -> None:
    """Print one line a figure, with what it should reach and whether it does."""
    for figure in figures:
        spread = ""
        if figure.spread is not None:
            spread = f"  ({figure.spread[0]:.4g} to {figure.spread[1]:.4g})"
        bound = "" if figure.bound is None else f"  (bound {figure.bound:.4g})"
        verdict = "holds" if figure.holds else "DOES NOT HOLD"
        print(
            f"{figure.name:56} {figure.value:12.6g} {figure.unit:8} {figure.reach:12} "
            f"{verdict}{spread}{bound}"
        )
    for skipped in not_run:
        print(f"{skipped['name']:56} not run: {skipped['why']}")


def say(text: str) -> None:
    """Print a line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)
