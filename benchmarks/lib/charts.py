"""Charts of results, for the README."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over one x axis: a name, and y by x."""

    title: str
    lines: Mapping[str, Mapping[float, float]]


def draw_lines(path: Path, panels: list[Panel], x: str, y: str, caption: str) -> None:
    """Write panels beside one another as SVG, both axes logarithmic, x from 1 on."""
    # names of parts follow from the content, so that the same content gives the same file
    with pyplot.rc_context({"svg.hashsalt": "anna-export", "font.size": 10}):
        figure, axes = pyplot.subplots(
            1, len(panels), figsize=(5.2 * len(panels), 4), sharey=True, squeeze=False
        )
        for axis, panel in zip(axes[0], panels, strict=True):
            for name, points in panel.lines.items():
                style = "--" if name.startswith("bound") else "-"
                marker = "" if style == "--" else "o"
                axis.plot(list(points), list(points.values()), style, marker=marker, label=name)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.set_title(panel.title)
            axis.set_xlabel(x)
            axis.grid(alpha=0.3)
            axis.legend()
        axes[0][0].set_ylabel(y)
        figure.text(0.5, 0.0, caption, ha="center", va="bottom", fontsize=8, color="#555555")
        figure.tight_layout(rect=(0, 0.04, 1, 1))
        figure.savefig(path, format="svg", metadata={"Date": None})
        pyplot.close(figure)
