"""What the charts share: colours, symbols, error bars and logarithmic axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import plotly.graph_objects as go

# Okabe and Ito's, which every kind of sight tells apart.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
GREY: Final = "#7F7F7F"
_SYMBOLS: Final = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
DASHES: Final = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure with what is above and below it."""

    key: str
    title: str
    note: str
    figure: go.Figure

    def json(self) -> str:
        """Return the figure as Plotly's JSON, safe inside a script."""
        return str(self.figure.to_json()).replace("</", "<\\/")


def colour(index: int) -> str:
    """Return an artifact's colour."""
    return COLOURS[index % len(COLOURS)]


def symbol(index: int) -> str:
    """Return an artifact's symbol."""
    return _SYMBOLS[index % len(_SYMBOLS)]


def error_bars(
    values: Sequence[float], lows: Sequence[float], highs: Sequence[float]
) -> dict[str, Any]:
    """Return Plotly's error bars from lows to highs."""
    return {
        "type": "data",
        "array": [high - value for value, high in zip(values, highs, strict=True)],
        "arrayminus": [value - low for value, low in zip(values, lows, strict=True)],
        "thickness": 1.2,
    }


def offset_of(index: int, count: int) -> float:
    """Return how far a mark stands from the middle of its row, so that none hides another."""
    return (index - (count - 1) / 2) * min(0.2, 0.6 / max(1, count))


def log_axis_at(values: Sequence[float]) -> dict[str, Any]:
    """Return a logarithmic axis that is marked at these values."""
    return {"type": "log", "tickvals": values, "ticktext": [f"{value:g}" for value in values]}


def log_axis(figure: go.Figure) -> dict[str, Any]:
    """Return a logarithmic axis that is marked at 1, 2 and 5 in every decade it spans."""
    values = [value for trace in figure.data for value in trace.y if value > 0]
    marks = (mantissa * 10.0**power for power in range(-4, 7) for mantissa in (1, 2, 5))
    return log_axis_at([mark for mark in marks if min(values) / 3 <= mark <= max(values) * 3])
