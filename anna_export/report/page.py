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
# By chart: its title, and how to measure it where it is missing.
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
    """A table with a heading; `numbers` are the columns that hold numbers, from 0."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    note: str = ""


def page(artifacts: Sequence[Facts]) -> str:
    """Return the HTML of one artifact, or of several side by side."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    source = resources.files("anna_export.report").joinpath("page.html")
    template = environment.from_string(source.read_text(encoding="utf-8"))
    charts = all_charts(artifacts)
    drawn = {chart.key for chart in charts}
    names = [facts.name for facts in artifacts]
    makers = (_vectors, _baselines, _prompts, _engines, _hardware, _hashes)
    return template.render(
        title=" and ".join(names) if len(names) < 4 else f"{len(names)} models",
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=installed().get("anna-export", ""),
        names=names,
        overview=_overview(artifacts),
        verdicts=[facts.parity.verdict if facts.parity else "" for facts in artifacts],
        charts=[
            {
                "key": chart.key,
                "title": chart.title,
                "note": chart.note,
                "json": Markup(chart.json()),
            }
            for chart in charts
        ],
        missing=[heading for key, heading in _MEASURED.items() if key not in drawn],
        tables=[table for make in makers if (table := make(artifacts)).rows],
        reproduce=[(facts.name, _commands(facts)) for facts in artifacts],
        plotly=Markup(get_plotlyjs()) if charts else "",
    )


def _overview(artifacts: Sequence[Facts]) -> list[tuple[str, list[str]]]:
    manifests = [facts.artifact.manifest for facts in artifacts]
    rows = {
        "base model": [
            " with the LoRA adapter ".join([m.source.model, *m.source.adapters]) for m in manifests
        ],
        "precision": [str(m.precision) for m in manifests],
        "size": [f"{facts.artifact.size_bytes / 1e6:.1f} MB" for facts in artifacts],
        "model": [f"{m.spec.parameters:,} parameters, {m.spec.layers} layers" for m in manifests],
        "vectors": [f"{m.spec.embedding_dim} dimensions, {m.spec.head.length}" for m in manifests],
        "longest text": [f"{m.framing.max_tokens:,} tokens" for m in manifests],
        "calibrated on": [
            f"{m.quantised.calibration_texts} texts, {m.quantised.calibration_tokens:,} tokens"
            if m.quantised
            else _NONE
            for m in manifests
        ],
        "not quantised": [
            f"{len(m.quantised.unquantized)} linear inputs" if m.quantised else _NONE
            for m in manifests
        ],
        "exported": [m.created for m in manifests],
    }
    return list(rows.items())


def _vectors(artifacts: Sequence[Facts]) -> Table:
    rows = []
    for facts in artifacts:
        if facts.parity is None:
            continue
        parity = facts.parity.vectors
        batch1 = parity.batch1_worst_cosine
        rows.append(
            [
                facts.name,
                f"{parity.worst_cosine:.7f}",
                f"{parity.loss:.2e}",
                _NONE if batch1 is None else f"{batch1:.7f}",
                f"{parity.texts}",
                parity.candidate,
                parity.hardware,
            ]
        )
    heads = ["artifact", "worst cosine", "mean loss", "batch size 1", "texts", "computed by", "on"]
    note = "Batch size 1: the worst cosine of a text by itself to the same text in a padded batch."
    return Table("Parity of vectors", heads, rows, frozenset((1, 2, 3, 4)), note)


def _baselines(artifacts: Sequence[Facts]) -> Table:
    rows = [
        [
            facts.name,
            f"{run.baseline.name}, {run.baseline.compute}",
            f"{row.batch} x {row.tokens}",
            f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
            row.versus.verdict,
            f"{run.baseline.worst_cosine:.5f}",
        ]
        for facts in artifacts
        for run in facts.runs
        for row in run.rows
        if run.baseline is not None and row.versus is not None
        for ratio in [row.versus.ratio]
    ]
    heads = ["artifact", "baseline", "batch", "times as fast", "verdict", "worst cosine to it"]
    note = (
        "Artifact and baseline were timed in alternation; there is no verdict on speed where their "
        "vectors differ."
    )
    return Table("Against baselines", heads, rows, frozenset((3, 5)), note)


def _prompts(artifacts: Sequence[Facts]) -> Table:
    rows = []
    for facts in artifacts:
        manifest = facts.artifact.manifest
        for name, prompt in manifest.prompts.by_name.items():
            prefix = manifest.prefixes.get(name)
            text = prompt.front + (f" … {prompt.back}" if prompt.back else "")
            rows.append(
                [
                    facts.name,
                    name + (" (default)" if name == manifest.prompts.default else ""),
                    _NONE if prefix is None else f"{len(prefix.ids)}",
                    text if len(text) < 160 else f"{text[:150]} …",
                ]
            )
    return Table("Prompts", ["artifact", "name", "cached tokens", "text"], rows, frozenset((2,)))


def _engines(artifacts: Sequence[Facts]) -> Table:
    rows = [
        [
            facts.name,
            str(stored.record),
            f"{stored.record.size_bytes / 1e6:.1f} MB",
            ", ".join(f"{count} {kind}" for kind, count in stored.record.layers.items()),
            "; ".join(stored.record.fusion_report) or "passed",
        ]
        for facts in artifacts
        for stored in facts.engines
    ]
    heads = ["artifact", "engine", "size", "layers", "fusion check"]
    return Table("Engines", heads, rows, frozenset((2,)))


def _hardware(artifacts: Sequence[Facts]) -> Table:
    rows = []
    for facts in artifacts:
        for run in facts.runs:
            environment = run.environment
            versions = ("onnxruntime", "tensorrt", "tensorrt-rtx", "torch")
            rows.append(
                [
                    facts.name,
                    run.compute,
                    f"{environment.hardware}, {environment.cores} cores"
                    + (f", {environment.mhz:.0f} MHz" if environment.mhz else ""),
                    ", ".join(
                        f"{name} {environment.versions[name]}"
                        for name in versions
                        if name in environment.versions
                    ),
                    f"{run.rounds} rounds",
                ]
            )
    return Table("Timed on", ["artifact", "computed in", "hardware", "libraries", "rounds"], rows)


def _hashes(artifacts: Sequence[Facts]) -> Table:
    rows = []
    for facts in artifacts:
        manifest = facts.artifact.manifest
        rows.append([facts.name, "artifact_id", _NONE, manifest.artifact_id])
        for name, entry in sorted(manifest.files.items()):
            rows.append([facts.name, name, f"{entry.size_bytes:,}", entry.sha256])
    return Table("Hashes", ["artifact", "file", "bytes", "sha256"], rows, frozenset((2,)))


def _commands(facts: Facts) -> str:
    manifest = facts.artifact.manifest
    source = manifest.source
    folder = facts.artifact.folder.name
    sources = ["--model", source.model]
    for adapter in source.adapters:
        sources += ["--adapter", adapter]
    precision = [f"--{manifest.precision}", "--max-tokens", str(manifest.framing.max_tokens)]
    lines = [
        ["anna-export", *sources, *precision, "--out", folder],
        ["anna-export", "verify", folder, *sources],
    ]
    for run in facts.runs:
        shapes = {row.batch for row in run.rows}, {row.tokens for row in run.rows}
        batches, lengths = (",".join(map(str, sorted(values))) for values in shapes)
        bench = ["anna-export", "bench", folder, "--batch", batches, "--length", lengths]
        for point in run.open:
            bench += ["--rate", f"{point.rate:g}"]
        if run.prompt is not None:
            bench += ["--prompt", run.prompt]
        lines.append(bench)
    return "\n".join(shlex.join(line) for line in lines)
