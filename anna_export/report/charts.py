"""The page's charts: each is drawn from facts, or is not there where they are missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import plotly.graph_objects as go

from anna_export.report.facts import Facts

# Okabe and Ito's, which every kind of sight tells apart.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_SYMBOLS: Final = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")


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


def all_charts(facts: Sequence[Facts]) -> list[Chart]:
    """Return every chart that there are measurements for."""
    makers = (quality, tasks, latency, load, prompts, layers)
    return [chart for make in makers if (chart := make(facts)) is not None]


def quality(facts: Sequence[Facts]) -> Chart | None:
    """What each costs and what it is worth: time and size against the loss."""
    shapes = [set(one.rows()) for one in facts]
    common = set.intersection(*shapes) if shapes else set()
    shown = [one for one in facts if one.loss is not None]
    if not common or not shown:
        return None
    shape = max(common)
    with_tasks = all(one.proof is not None and one.proof.tasks is not None for one in facts)
    figure = go.Figure()
    sizes = [one.artifact.size_bytes for one in facts]
    for place, one in enumerate(facts):
        if one not in shown:
            continue
        row = one.rows()[shape]
        spread = row.texts_per_second
        error: dict[str, Any] = {}
        if with_tasks:
            assert one.proof is not None and one.proof.tasks is not None
            mean = one.proof.tasks.mean
            value = mean.difference
            error = {
                "type": "data",
                "array": [mean.high - value],
                "arrayminus": [value - mean.low],
                "thickness": 1.2,
            }
        else:
            value = max(float(one.loss or 0), 1e-9)
        figure.add_scatter(
            x=[spread.value],
            y=[value],
            error_y=error or None,
            error_x={
                "type": "data",
                "array": [spread.high - spread.value],
                "arrayminus": [spread.value - spread.low],
                "thickness": 1.2,
            },
            mode="markers+text",
            text=[one.name],
            textposition="top center",
            marker={
                "size": 12 + 22 * (one.artifact.size_bytes / max(sizes)) ** 0.5,
                "color": COLOURS[place % len(COLOURS)],
                "opacity": 0.85,
            },
            name=f"{one.name}, {one.artifact.size_bytes / 1e6:.1f} MB",
            hovertemplate="%{x:.0f} texts/s, %{y:.2e}<extra>%{fullData.name}</extra>",
        )
    axis = "mean score, minus reference" if with_tasks else "loss, 1 - mean cosine"
    figure.update_xaxes(title_text=f"texts a second, batches of {shape[0]} x {shape[1]} tokens")
    figure.update_yaxes(title_text=axis, type="linear" if with_tasks else "log")
    if with_tasks:
        figure.add_hline(y=0, line_width=1, line_dash="dot", line_color="#7F7F7F")
    return Chart(
        "quality",
        "Accuracy, speed and size",
        "The area of a mark is the artifact's size; bars are 95 % intervals. Computed in: "
        + "; ".join(f"{one.name}, {one.arithmetic}" for one in shown)
        + ".",
        figure,
    )


def tasks(facts: Sequence[Facts]) -> Chart | None:
    """Each task's difference to the reference, with its interval and margin."""
    shown = [one for one in facts if one.proof is not None and one.proof.tasks is not None]
    if not shown:
        return None
    margins = {
        task.name: -task.difference.margin
        for one in shown
        if one.proof is not None and one.proof.tasks is not None
        for task in one.proof.tasks.tasks
    }
    names = list(margins)
    figure = go.Figure()
    for place, one in enumerate(facts):
        if one not in shown:
            continue
        assert one.proof is not None and one.proof.tasks is not None
        found = one.proof.tasks.tasks
        differences = [task.difference for task in found]
        figure.add_scatter(
            x=[d.difference for d in differences],
            y=[names.index(task.name) + _beside(place, len(facts)) for task in found],
            error_x={
                "type": "data",
                "array": [d.high - d.difference for d in differences],
                "arrayminus": [d.difference - d.low for d in differences],
                "thickness": 1.2,
            },
            mode="markers",
            marker={
                "size": 9,
                "color": COLOURS[place % len(COLOURS)],
                "symbol": _SYMBOLS[place % len(_SYMBOLS)],
            },
            name=one.name,
        )
    figure.add_scatter(
        x=list(margins.values()),
        y=list(range(len(names))),
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 34, "color": "#7F7F7F", "line": {"width": 2}},
        name="what may be lost",
    )
    figure.add_vline(x=0, line_width=1, line_dash="dot", line_color="#7F7F7F")
    figure.update_xaxes(title_text="score, artifact minus reference")
    figure.update_yaxes(
        autorange="reversed", tickvals=list(range(len(names))), ticktext=names, showgrid=False
    )
    figure.update_layout(height=150 + 60 * len(names))
    return Chart(
        "tasks",
        "Parity by task",
        "A task passes where the whole 95 % interval lies right of the grey mark, the margin that "
        "was fixed beforehand.",
        figure,
    )


def latency(facts: Sequence[Facts]) -> Chart | None:
    """Milliseconds of a batch by the length of its texts."""
    figure = go.Figure()
    for place, one in enumerate(facts):
        rows = one.rows()
        for step, batch in enumerate(sorted({batch for batch, _ in rows})):
            lengths = sorted(tokens for size, tokens in rows if size == batch)
            found = [rows[batch, tokens] for tokens in lengths]
            medians = [row.p50_ms for row in found]
            figure.add_scatter(
                x=lengths,
                y=medians,
                error_y={
                    "type": "data",
                    "array": [row.p99_ms - row.p50_ms for row in found],
                    "arrayminus": [0.0] * len(found),
                    "thickness": 1.0,
                },
                mode="lines+markers",
                marker={
                    "color": COLOURS[place % len(COLOURS)],
                    "symbol": _SYMBOLS[step % len(_SYMBOLS)],
                },
                line={
                    "color": COLOURS[place % len(COLOURS)],
                    "dash": ("solid", "dash", "dot", "dashdot")[step % 4],
                },
                name=f"{one.name}, batch {batch}",
            )
    if not figure.data:
        return None
    lengths = sorted({tokens for one in facts for _, tokens in one.rows()})
    figure.update_xaxes(
        title_text="tokens of a text",
        type="log",
        tickvals=lengths,
        ticktext=list(map(str, lengths)),
    )
    figure.update_yaxes(title_text="milliseconds of a batch", **_logarithmic(figure))
    return Chart(
        "latency",
        "Latency by length",
        "Median of all calls; bars reach up to the 99th percentile.",
        figure,
    )


def load(facts: Sequence[Facts]) -> Chart | None:
    """How long a text waits, by how many arrive a second."""
    figure = go.Figure()
    for place, one in enumerate(facts):
        points = sorted(
            (point for run in one.runs if not run.prompt for point in run.open),
            key=lambda point: point.rate,
        )
        for share, dash in (("p50_ms", "solid"), ("p99_ms", "dot")):
            if points:
                figure.add_scatter(
                    x=[point.rate for point in points],
                    y=[getattr(point, share) for point in points],
                    mode="lines+markers",
                    line={"color": COLOURS[place % len(COLOURS)], "dash": dash},
                    name=f"{one.name}, {share[:3]}",
                )
    if not figure.data:
        return None
    rates = sorted({point.rate for one in facts for run in one.runs for point in run.open})
    figure.update_xaxes(
        title_text="texts that arrive a second",
        type="log",
        tickvals=rates,
        ticktext=[f"{rate:g}" for rate in rates],
    )
    figure.update_yaxes(title_text="milliseconds to the vector", **_logarithmic(figure))
    return Chart(
        "load",
        "Latency under load",
        "Texts arrive as a Poisson process; waiting is counted from when a text arrives.",
        figure,
    )


def prompts(facts: Sequence[Facts]) -> Chart | None:
    """What a prompt costs: times of texts behind it over times without, by its length."""
    figure = go.Figure()
    for place, one in enumerate(facts):
        bare, prefixes = one.rows(), one.artifact.manifest.prefixes
        points = (
            sorted(
                (
                    len(prefixes[run.prompt].ids),
                    row.p50_ms / bare[row.batch, row.tokens].p50_ms,
                    row,
                )
                for run in one.runs
                if run.prompt and run.prompt in prefixes
                for row in run.rows
                if (row.batch, row.tokens) in bare
            )
            if one.runs
            else []
        )
        if points:
            figure.add_scatter(
                x=[tokens for tokens, _, _ in points],
                y=[ratio for _, ratio, _ in points],
                text=[f"{row.batch} x {row.tokens}" for _, _, row in points],
                mode="markers",
                marker={"size": 9, "color": COLOURS[place % len(COLOURS)]},
                name=one.name,
            )
    if not figure.data:
        return None
    figure.add_hline(y=1, line_width=1, line_dash="dot", line_color="#7F7F7F")
    figure.update_xaxes(title_text="tokens of the prompt, computed ahead", rangemode="tozero")
    figure.update_yaxes(title_text="time over that without a prompt", rangemode="tozero")
    return Chart("prompts", "Cost of a prompt", "One mark a shape of batch.", figure)


def layers(facts: Sequence[Facts]) -> Chart | None:
    """How much of each quantised layer's output is its own, and not rounding."""
    figure = go.Figure()
    count = max(one.artifact.manifest.spec.layers for one in facts)
    for place, one in enumerate(facts):
        if one.calibration is None or not one.calibration.snr_db:
            continue
        found = one.calibration.snr_db
        modules = list(one.artifact.manifest.spec.linear_modules())
        shown = [module for module in modules if module in found]
        figure.add_scatter(
            x=[int(module.split(".")[1]) + _beside(place, len(facts)) for module in shown],
            y=[found[module] for module in shown],
            text=[module for module in shown],
            mode="markers",
            marker={
                "size": 7,
                "color": COLOURS[place % len(COLOURS)],
                "symbol": _SYMBOLS[place % len(_SYMBOLS)],
                "opacity": 0.8,
            },
            name=one.name,
            hovertemplate="%{text}: %{y:.1f} dB<extra>%{fullData.name}</extra>",
        )
    if not figure.data:
        return None
    figure.update_xaxes(title_text="layer", tickformat="d", dtick=max(1, count // 16))
    figure.update_yaxes(title_text="signal to noise, dB")
    return Chart(
        "layers",
        "Sensitivity of layers",
        "Higher is better; one mark a linear module.",
        figure,
    )


def _beside(place: int, count: int) -> float:
    """Return how far a mark stands from the middle of its row, so that none hides another."""
    return (place - (count - 1) / 2) * min(0.2, 0.6 / max(1, count))


def _logarithmic(figure: go.Figure) -> dict[str, Any]:
    """Return a logarithmic axis that is marked at 1, 2 and 5 in every decade it spans."""
    values = [value for trace in figure.data for value in trace.y if value > 0]
    marks = [
        mantissa * 10.0**power
        for power in range(-4, 7)
        for mantissa in (1, 2, 5)
        if min(values) / 3 <= mantissa * 10.0**power <= max(values) * 3
    ]
    return {"type": "log", "tickvals": marks, "ticktext": [f"{mark:g}" for mark in marks]}
