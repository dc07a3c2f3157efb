"""The page's charts; a chart without measurements is left out."""

from collections.abc import Sequence
from typing import Any, Final

import plotly.graph_objects as go

from anna_export.report.facts import Facts
from anna_export.report.plot import (
    DASHES,
    GREY,
    Chart,
    colour,
    error_bars,
    log_axis,
    log_axis_at,
    offset_of,
    symbol,
)
from anna_export.verify.parity_report import TaskResult

# Pixels across the mark of the largest artifact.
_LARGEST_MARK: Final = 44
# The least loss that a logarithmic axis shows.
_LEAST_LOSS: Final = 1e-9

Shape = tuple[int, int]  # texts of a batch, tokens of a text


def all_charts(artifacts: Sequence[Facts]) -> list[Chart]:
    """Return every chart that there are measurements for."""
    makers = (quality, tasks, latency, load, prompts, layers)
    return [chart for make in makers if (chart := make(artifacts)) is not None]


def quality(artifacts: Sequence[Facts]) -> Chart | None:
    """Speed and size against scores, if all were scored on tasks, else against the loss."""
    shapes = [set(facts.rows()) for facts in artifacts]
    common = set.intersection(*shapes) if shapes else set()
    if not common or all(facts.loss is None for facts in artifacts):
        return None
    with_tasks = all(facts.tasks is not None for facts in artifacts)
    return (score_chart if with_tasks else loss_chart)(artifacts, max(common))


def loss_chart(artifacts: Sequence[Facts], shape: Shape) -> Chart:
    """Texts a second against the loss of vectors."""
    figure = go.Figure()
    for index, facts in enumerate(artifacts):
        if facts.loss is not None:
            _add_mark(figure, artifacts, index, shape, max(facts.loss, _LEAST_LOSS))
    figure.update_yaxes(title_text="loss, 1 - mean cosine", type="log")
    return _quality(figure, artifacts, shape)


def score_chart(artifacts: Sequence[Facts], shape: Shape) -> Chart:
    """Texts a second against the mean score on tasks."""
    figure = go.Figure()
    for index, facts in enumerate(artifacts):
        if facts.tasks is not None:
            mean = facts.tasks.mean
            error = error_bars([mean.difference], [mean.low], [mean.high])
            _add_mark(figure, artifacts, index, shape, mean.difference, error)
    figure.update_yaxes(title_text="mean score, minus reference")
    figure.add_hline(y=0, line_width=1, line_dash="dot", line_color=GREY)
    return _quality(figure, artifacts, shape)


def _add_mark(
    figure: go.Figure,
    artifacts: Sequence[Facts],
    index: int,
    shape: Shape,
    value: float,
    error: dict[str, Any] | None = None,
) -> None:
    """Add an artifact's mark, whose area is proportional to the artifact's size."""
    facts = artifacts[index]
    largest = max(other.artifact.size_bytes for other in artifacts)
    speed = facts.rows()[shape].texts_per_second
    figure.add_scatter(
        x=[speed.value],
        y=[value],
        error_x=error_bars([speed.value], [speed.low], [speed.high]),
        error_y=error,
        mode="markers+text",
        text=[facts.name],
        textposition="top center",
        marker={
            "size": _LARGEST_MARK * (facts.artifact.size_bytes / largest) ** 0.5,
            "color": colour(index),
            "opacity": 0.85,
        },
        name=f"{facts.name}, {facts.artifact.size_bytes / 1e6:.1f} MB",
        hovertemplate="%{x:.0f} texts/s, %{y:.2e}<extra>%{fullData.name}</extra>",
    )


def _quality(figure: go.Figure, artifacts: Sequence[Facts], shape: Shape) -> Chart:
    batch, tokens = shape
    figure.update_xaxes(title_text=f"texts a second, batches of {batch} x {tokens} tokens")
    computed = (
        f"{facts.name}, {facts.compute_label}" for facts in artifacts if facts.loss is not None
    )
    return Chart(
        "quality",
        "Accuracy, speed and size",
        "The area of a mark is proportional to the artifact's size; bars are 95 % intervals. "
        f"Computed in: {'; '.join(computed)}.",
        figure,
    )


def tasks(artifacts: Sequence[Facts]) -> Chart | None:
    """Each task's difference to the reference, with its interval and margin."""
    margins = {
        task.name: -task.difference.margin
        for facts in artifacts
        if facts.tasks is not None
        for task in facts.tasks.tasks
    }
    if not margins:
        return None
    names = list(margins)
    figure = go.Figure()
    for index, facts in enumerate(artifacts):
        if facts.tasks is not None:
            offset = offset_of(index, len(artifacts))
            _add_scores(figure, index, facts.name, facts.tasks.tasks, names, offset)
    figure.add_scatter(
        x=list(margins.values()),
        y=list(range(len(names))),
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 34, "color": GREY, "line": {"width": 2}},
        name="margin",
    )
    figure.add_vline(x=0, line_width=1, line_dash="dot", line_color=GREY)
    figure.update_xaxes(title_text="score, artifact minus reference")
    figure.update_yaxes(
        autorange="reversed", tickvals=list(range(len(names))), ticktext=names, showgrid=False
    )
    figure.update_layout(height=150 + 60 * len(names))
    note = (
        "A task passes if its whole 95 % interval lies right of the grey mark, the margin, which "
        "was fixed beforehand."
    )
    return Chart("tasks", "Parity by task", note, figure)


def _add_scores(
    figure: go.Figure,
    index: int,
    name: str,
    results: Sequence[TaskResult],
    tasks: Sequence[str],
    offset: float,
) -> None:
    """Add an artifact's marks, each in its task's row."""
    differences = [result.difference.difference for result in results]
    lows = [result.difference.low for result in results]
    highs = [result.difference.high for result in results]
    figure.add_scatter(
        x=differences,
        y=[tasks.index(result.name) + offset for result in results],
        error_x=error_bars(differences, lows, highs),
        mode="markers",
        marker={"size": 9, "color": colour(index), "symbol": symbol(index)},
        name=name,
    )


def latency(artifacts: Sequence[Facts]) -> Chart | None:
    """Milliseconds of a batch by the length of its texts."""
    figure = go.Figure()
    for index, facts in enumerate(artifacts):
        rows = facts.rows()
        for step, batch in enumerate(sorted({batch for batch, _ in rows})):
            lengths = sorted(tokens for size, tokens in rows if size == batch)
            medians = [rows[batch, tokens].p50_ms for tokens in lengths]
            slowest = [rows[batch, tokens].p99_ms for tokens in lengths]
            figure.add_scatter(
                x=lengths,
                y=medians,
                error_y=error_bars(medians, medians, slowest),
                mode="lines+markers",
                marker={"color": colour(index), "symbol": symbol(step)},
                line={"color": colour(index), "dash": DASHES[step % len(DASHES)]},
                name=f"{facts.name}, batch {batch}",
            )
    if not figure.data:
        return None
    lengths = sorted({tokens for facts in artifacts for _, tokens in facts.rows()})
    figure.update_xaxes(title_text="tokens of a text", **log_axis_at(lengths))
    figure.update_yaxes(title_text="milliseconds of a batch", **log_axis(figure))
    note = "Median of all calls; bars reach up to the 99th percentile."
    return Chart("latency", "Latency by length", note, figure)


def load(artifacts: Sequence[Facts]) -> Chart | None:
    """How long a text waits, by how many arrive a second."""
    figure = go.Figure()
    for index, facts in enumerate(artifacts):
        points = sorted(
            (point for run in facts.runs if not run.prompt for point in run.open),
            key=lambda point: point.rate,
        )
        for percentile, dash in (("p50_ms", "solid"), ("p99_ms", "dot")):
            if points:
                figure.add_scatter(
                    x=[point.rate for point in points],
                    y=[getattr(point, percentile) for point in points],
                    mode="lines+markers",
                    line={"color": colour(index), "dash": dash},
                    name=f"{facts.name}, {percentile[:3]}",
                )
    if not figure.data:
        return None
    rates = sorted({point.rate for facts in artifacts for run in facts.runs for point in run.open})
    figure.update_xaxes(title_text="texts that arrive a second", **log_axis_at(rates))
    figure.update_yaxes(title_text="milliseconds to the vector", **log_axis(figure))
    note = "Texts arrive as a Poisson process; a text's time starts when it arrives."
    return Chart("load", "Latency under load", note, figure)


def prompts(artifacts: Sequence[Facts]) -> Chart | None:
    """What a prompt costs: times of texts with it over times without, by its length."""
    figure = go.Figure()
    for index, facts in enumerate(artifacts):
        bare, prefixes = facts.rows(), facts.artifact.manifest.prefixes
        points = [
            (len(prefixes[run.prompt].ids), row.p50_ms / bare[row.batch, row.tokens].p50_ms, row)
            for run in facts.runs
            if run.prompt and run.prompt in prefixes
            for row in run.rows
            if (row.batch, row.tokens) in bare
        ]
        if points:
            figure.add_scatter(
                x=[tokens for tokens, _, _ in points],
                y=[ratio for _, ratio, _ in points],
                text=[f"{row.batch} x {row.tokens}" for _, _, row in points],
                mode="markers",
                marker={"size": 9, "color": colour(index)},
                name=facts.name,
            )
    if not figure.data:
        return None
    figure.add_hline(y=1, line_width=1, line_dash="dot", line_color=GREY)
    figure.update_xaxes(title_text="tokens of the prompt's cached prefix", rangemode="tozero")
    figure.update_yaxes(title_text="time, as a multiple of no prompt", rangemode="tozero")
    note = "Each mark is one shape of batch, texts x tokens."
    return Chart("prompts", "Cost of a prompt", note, figure)


def layers(artifacts: Sequence[Facts]) -> Chart | None:
    """The signal-to-noise ratio that quantisation leaves each linear layer's output."""
    figure = go.Figure()
    count = max(facts.artifact.manifest.spec.layers for facts in artifacts)
    for index, facts in enumerate(artifacts):
        if facts.calibration is None or not facts.calibration.snr_db:
            continue
        snr_db = facts.calibration.snr_db
        linear = facts.artifact.manifest.spec.linear_modules()
        modules = [module for module in linear if module in snr_db]
        offset = offset_of(index, len(artifacts))
        figure.add_scatter(
            x=[int(module.split(".")[1]) + offset for module in modules],
            y=[snr_db[module] for module in modules],
            text=modules,
            mode="markers",
            marker={"size": 7, "color": colour(index), "symbol": symbol(index), "opacity": 0.8},
            name=facts.name,
            hovertemplate="%{text}: %{y:.1f} dB<extra>%{fullData.name}</extra>",
        )
    if not figure.data:
        return None
    figure.update_xaxes(
        title_text="layer", tickformat="d", dtick=max(1, count // 16), range=[-0.5, count - 0.5]
    )
    figure.update_yaxes(title_text="signal to noise, dB")
    note = "Each mark is a linear module; higher is better."
    return Chart("layers", "Sensitivity of layers", note, figure)
