"""The page: facts and charts in one HTML file that needs nothing beside it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from anna_export.machine.versions import installed
from anna_export.report.charts import all_charts
from anna_export.report.facts import Facts

_NONE = "-"
# What there is a chart of, and how to measure it where there is none.
_MEASURED = {
    "quality": (
        "Accuracy, speed and size",
        "Run anna-export verify and anna-export bench on each, with the same shapes.",
    ),
    "tasks": ("Parity by task", "Run anna-export verify with --tier quick or full."),
    "latency": ("Latency by length", "Run anna-export bench."),
    "load": ("Latency under load", "Run anna-export bench with --rate."),
    "prompts": (
        "Cost of a prompt",
        "Run anna-export bench without --prompt and with it, for a prompt that is baked.",
    ),
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a heading; columns of these places hold numbers."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    note: str = ""


def page(facts: Sequence[Facts]) -> str:
    """Return the HTML of one artifact, or of several side by side."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    source = resources.files("anna_export.report").joinpath("page.html")
    template = environment.from_string(source.read_text(encoding="utf-8"))
    charts = all_charts(facts)
    shown = {chart.key for chart in charts}
    missing = [told for key, told in _MEASURED.items() if key not in shown]
    makers = (_vectors, _rivals, _prompts, _engines, _hardware, _hashes)
    return template.render(
        title=" and ".join(one.name for one in facts) if len(facts) < 4 else f"{len(facts)} models",
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=installed().get("anna-export", ""),
        names=[one.name for one in facts],
        overview=_overview(facts),
        verdicts=[one.proof.verdict if one.proof is not None else "" for one in facts],
        charts=[
            {
                "key": chart.key,
                "title": chart.title,
                "note": chart.note,
                "json": Markup(chart.json()),
            }
            for chart in charts
        ],
        missing=missing,
        tables=[table for make in makers if (table := make(facts)).rows],
        reproduce=[(one.name, _commands(one)) for one in facts],
        plotly=Markup(get_plotlyjs()) if charts else "",
    )


def _overview(facts: Sequence[Facts]) -> list[tuple[str, list[str]]]:
    manifests = [one.artifact.manifest for one in facts]
    rows = {
        "made from": [
            m.source.model + (f" with the LoRA {m.source.adapter}" if m.source.adapter else "")
            for m in manifests
        ],
        "precision": [str(m.precision) for m in manifests],
        "size": [f"{one.artifact.size_bytes / 1e6:.1f} MB" for one in facts],
        "model": [f"{m.spec.parameters:,} parameters, {m.spec.layers} layers" for m in manifests],
        "vectors": [f"{m.spec.dim} dimensions, unit length" for m in manifests],
        "longest text": [f"{m.framing.max_tokens:,} tokens" for m in manifests],
        "calibrated on": [
            f"{m.quantised.calibration_texts} texts, {m.quantised.calibration_tokens:,} tokens"
            if m.quantised
            else _NONE
            for m in manifests
        ],
        "kept in high precision": [
            f"{len(m.quantised.unquantized)} linear inputs" if m.quantised else _NONE
            for m in manifests
        ],
        "made": [m.created for m in manifests],
    }
    return list(rows.items())


def _vectors(facts: Sequence[Facts]) -> Table:
    rows = []
    for one in facts:
        if one.proof is None:
            continue
        found = one.proof.vectors
        alone = found.batch1_worst_cosine
        rows.append(
            [
                one.name,
                f"{found.worst_cosine:.7f}",
                f"{found.loss:.2e}",
                _NONE if alone is None else f"{alone:.7f}",
                f"{found.texts}",
                found.candidate,
                found.hardware,
            ]
        )
    heads = [
        "artifact",
        "worst cosine",
        "mean loss",
        "alone and in a batch",
        "texts",
        "computed by",
        "on",
    ]
    return Table("Parity of vectors", heads, rows, frozenset((1, 2, 3, 4)))


def _rivals(facts: Sequence[Facts]) -> Table:
    rows = []
    for one in facts:
        for run in one.runs:
            for row in run.rows:
                if run.rival is None or row.versus is None:
                    continue
                ratio = row.versus.ratio
                rows.append(
                    [
                        one.name,
                        f"{run.rival.name}, {run.rival.arithmetic}",
                        f"{row.batch} x {row.tokens}",
                        f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
                        row.versus.verdict,
                        f"{run.rival.worst_cosine:.5f}",
                    ]
                )
    heads = ["artifact", "rival", "batch", "times as fast", "verdict", "worst cosine to it"]
    note = "Measured in turn, pair by pair; a rival of other vectors wins and loses nothing."
    return Table("Against others", heads, rows, frozenset((3, 5)), note)


def _prompts(facts: Sequence[Facts]) -> Table:
    rows = []
    for one in facts:
        manifest = one.artifact.manifest
        for name, prompt in manifest.prompts.by_name.items():
            baked = manifest.prefixes.get(name)
            text = prompt.front + (f" … {prompt.back}" if prompt.back else "")
            rows.append(
                [
                    one.name,
                    name + (" (default)" if name == manifest.prompts.default else ""),
                    _NONE if baked is None else f"{len(baked.ids)}",
                    text if len(text) < 160 else f"{text[:150]} …",
                ]
            )
    return Table("Prompts", ["artifact", "name", "tokens ahead", "text"], rows, frozenset((2,)))


def _engines(facts: Sequence[Facts]) -> Table:
    rows = [
        [
            one.name,
            str(stored.record),
            f"{stored.record.size_bytes / 1e6:.1f} MB",
            ", ".join(f"{count} {kind}" for kind, count in stored.record.layers.items()),
            "; ".join(stored.record.fusion_report) or "passed",
        ]
        for one in facts
        for stored in one.engines
    ]
    heads = ["artifact", "engine", "size", "layers", "fusion check"]
    return Table("Engines", heads, rows, frozenset((2,)))


def _hardware(facts: Sequence[Facts]) -> Table:
    rows = []
    for one in facts:
        for run in one.runs:
            found = run.environment
            versions = ("onnxruntime", "tensorrt", "tensorrt-rtx", "torch")
            rows.append(
                [
                    one.name,
                    run.arithmetic,
                    f"{found.hardware}, {found.cores} cores"
                    + (f", {found.mhz:.0f} MHz" if found.mhz else ""),
                    ", ".join(
                        f"{name} {found.versions[name]}"
                        for name in versions
                        if name in found.versions
                    ),
                    f"{run.rounds} rounds",
                ]
            )
    return Table("What was timed on", ["artifact", "arithmetic", "on", "with", "rounds"], rows)


def _hashes(facts: Sequence[Facts]) -> Table:
    rows = [
        [one.name, name, f"{entry.size_bytes:,}", entry.sha256]
        for one in facts
        for name, entry in [
            ("artifact_id", None),
            *sorted(one.artifact.manifest.files.items()),
        ]
        if entry is not None
    ]
    ids = [[one.name, "artifact_id", _NONE, one.artifact.manifest.artifact_id] for one in facts]
    return Table("Hashes", ["artifact", "file", "bytes", "sha256"], [*ids, *rows], frozenset((2,)))


def _commands(facts: Facts) -> str:
    manifest = facts.artifact.manifest
    source = manifest.source
    folder = facts.artifact.folder.name
    made = ["anna-export", "--model", source.model]
    checked = ["anna-export", "verify", folder, "--model", source.model]
    if source.adapter:
        made += ["--adapter", source.adapter]
        checked += ["--adapter", source.adapter]
    made += [f"--{manifest.precision}", "--max-tokens", str(manifest.framing.max_tokens)]
    lines = [[*made, "--out", folder], checked]
    for run in facts.runs:
        shapes = {row.batch for row in run.rows}, {row.tokens for row in run.rows}
        batches, lengths = (",".join(map(str, sorted(values))) for values in shapes)
        timed = ["anna-export", "bench", folder, "--batch", batches, "--length", lengths]
        for point in run.open:
            timed += ["--rate", f"{point.rate:g}"]
        if run.prompt is not None:
            timed += ["--prompt", run.prompt]
        lines.append(timed)
    return "\n".join(shlex.join(line) for line in lines)
