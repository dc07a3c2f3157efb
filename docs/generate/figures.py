"""Measured figures: the table of all of them, and single ones in the text of a page.

A page names a figure as `{{benchmark | figure | format}}`; with `| spread` behind it the smallest
and largest value follow. The newest file of a benchmark counts.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.generate.markdown import cell, table

_NAMED = re.compile(r"\{\{(.+?)\}\}")
_MACHINE = ("hardware", "cores", "system", "python")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


class FigureError(ValueError):
    """A figure that a page names and no result holds, or results that cannot be read."""


@dataclass(frozen=True, slots=True)
class Result:
    """One file of results.

    Args:
        name: The benchmark's.
        date: When it ran, as YYYY-MM-DD.
        content: What the file holds.
    """

    name: str
    date: str
    content: dict[str, Any]

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """The figures by name."""
        return {figure["name"]: figure for figure in self.content["figures"]}


def read_results(folder: Path) -> dict[str, Result]:
    """Read the newest result of every benchmark, by name.

    Files are `NAME/DATE.json`.

    Raises:
        FigureError: If there is none, or a file is named otherwise or has no figures.
    """
    newest: dict[str, Result] = {}
    for path in sorted(folder.glob("**/*.json")):
        name, date = _name_and_date(path, folder)
        content = json.loads(path.read_text(encoding="utf-8"))
        if not content.get("figures"):
            raise FigureError(f"expected figures in {path}, found none")
        newest[name] = Result(name, date, content)  # paths are sorted by date
    if not newest:
        raise FigureError(f"expected results in {folder}, found none; run a benchmark")
    return newest


def charts(folder: Path) -> dict[str, Path]:
    """Return the newest chart of every benchmark that draws one, by name."""
    dated = [(*_name_and_date(path, folder), path) for path in folder.glob("**/*.svg")]
    return {name: path for name, _, path in sorted(dated)}


def _name_and_date(path: Path, folder: Path) -> tuple[str, str]:
    name, date = path.parent.relative_to(folder).as_posix(), path.stem
    if name == "." or not _DATE.fullmatch(date):
        raise FigureError(f"expected NAME/DATE{path.suffix} in {folder}, found {path}")
    return name, date


def fill(markdown: str, results: dict[str, Result]) -> str:
    """Put figures where a page names them.

    Raises:
        FigureError: If there is no such benchmark or figure.
    """
    return _NAMED.sub(lambda named: _value(named[1], results), markdown)


def _value(named: str, results: dict[str, Result]) -> str:
    benchmark, name, style, *options = (part.strip() for part in named.split("|"))
    if benchmark not in results:
        raise FigureError(f"expected a benchmark of {', '.join(results)}, found {benchmark!r}")
    figures = results[benchmark].figures
    if name not in figures:
        raise FigureError(f"expected a figure of {benchmark}: {list(figures)}, found {name!r}")
    figure = figures[name]
    value = format(float(figure["value"]), style)
    if "spread" in options:
        low, high = (format(bound, style) for bound in figure["spread"])
        value += f" ({low} to {high})"
    return value


def page(results: dict[str, Result]) -> str:
    """Return the page of all figures, benchmark by benchmark."""
    parts = [
        "# All figures",
        "The newest file of every benchmark in `benchmarks/results/`. A value is a median where it "
        "was measured more than once; low and high are its smallest and largest measurement. "
        "*Bound* is what counting operations and bytes leaves possible.",
    ]
    for _, result in sorted(results.items()):
        rows = [_row(figure) for figure in result.content["figures"]]
        heads = ["figure", "value", "unit", "low", "high", "target", "holds", "bound"]
        parts += [f"## {result.name}", _measured_on(result), table(heads, rows)]
        if not_run := result.content.get("not_run"):
            lines = "\n".join(f"- {cell(item['name'])}: {cell(item['why'])}" for item in not_run)
            parts.append(f"Not run:\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def _measured_on(result: Result) -> str:
    machine = result.content["machine"]
    described = [f"{key} {machine[key]}" for key in _MACHINE if machine.get(key)]
    versions = [f"{name} {version}" for name, version in result.content["versions"].items()]
    return cell(f"{result.date}. {'; '.join(described)}. {', '.join(versions)}.")


def _row(figure: dict[str, Any]) -> list[str]:
    low, high = figure.get("spread") or ("", "")
    target = figure.get("target", "")
    holds = figure.get("holds")
    verdict = "" if holds is None else "yes" if holds else "**no**"
    values = [_number(value) for value in (figure["value"], low, high, figure.get("bound"))]
    value, low, high, bound = values
    return [
        cell(figure["name"]),
        value,
        cell(figure["unit"]),
        low,
        high,
        cell(str(target)),
        verdict,
        bound,
    ]


def _number(value: float | str | None) -> str:
    return "" if value is None or value == "" else f"{float(value):.6g}"
