"""The model card: what an artifact is, how it was proved, how it is used."""

import json
from collections.abc import Mapping
from typing import Final

from anna_export.artifact.evidence import add_evidence
from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import CARD_FILE, PARITY_FILE, Manifest
from anna_export.bench.result import read_bench
from anna_export.report.by_itself import graph_section
from anna_export.verify.parity_file import current_parity
from anna_export.verify.parity_report import ParityReport, TaskParity, VectorParity
from anna_export.verify.published import Summary

RESULTS_FOLDER: Final = "mteb"
_UNVERIFIED: Final = "Not verified: the export left the comparison out. Run `anna-export verify`."


def add_parity(artifact: Artifact, report: ParityReport | None) -> Artifact:
    """Write parity.json, if there is a report, and the card that shows it."""
    if report is not None:
        text = json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"
        artifact = add_evidence(artifact, PARITY_FILE, text, report.vectors.prompts)
    return add_evidence(artifact, CARD_FILE, model_card(artifact, report))


def add_results(artifact: Artifact, results: Mapping[str, str]) -> Artifact:
    """Store the files of mteb's cache, by path in it: `mteb.ResultCache` reads them there."""
    for name, content in results.items():
        artifact = add_evidence(artifact, f"{RESULTS_FOLDER}/{name}", content)
    return artifact


def add_card(artifact: Artifact) -> Artifact:
    """Write the card anew, after the artifact was proved or timed again."""
    return add_evidence(artifact, CARD_FILE, model_card(artifact, current_parity(artifact)))


def model_card(artifact: Artifact, report: ParityReport | None) -> str:
    """Return the card as Markdown with the metadata block that model hubs read."""
    manifest = artifact.manifest
    source = manifest.source
    made_from = " with the LoRA adapter ".join(f"`{n}`" for n in [source.model, *source.adapters])
    return f"""---
library_name: anna-export
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, onnx, embeddings]
---

# Text embeddings, {manifest.precision}

anna-export {manifest.versions.get("anna-export", "")} exported this model from \
{made_from}.

| | |
|---|---|
{_figures(artifact)}

## Parity with the PyTorch model

{_vectors(report.vectors) if report is not None else _UNVERIFIED}
{_tasks(report.tasks) if report is not None and report.tasks is not None else ""}\
{_quantised(manifest)}{_speed(artifact)}
## Prompts

{_prompts(manifest)}

## Use

```python
import anna_export

encoder = anna_export.open_encoder("this folder")
vectors = encoder.encode(["a text", "another"])  # (2, {manifest.spec.embedding_dim}) float32
```

{graph_section(artifact, report.vectors.golden if report is not None else [])}"""


def _figures(artifact: Artifact) -> str:
    """Return the rows that say what the model is."""
    manifest = artifact.manifest
    spec = manifest.spec
    same = " (cosine = dot product)" if spec.head.normalize else ""
    return f"""| dimensions | {spec.embedding_dim}, {spec.head.length}{same} |
| longest text | {manifest.framing.max_tokens} tokens, including the prompt and the end token; \
longer texts are truncated |
| model | {spec.layers} layers, {spec.parameters:,} parameters, {spec.head.describe()} |
| size | {artifact.size_bytes / 1e6:.1f} MB |
| artifact | `{manifest.artifact_id}` |"""


def _prompts(manifest: Manifest) -> str:
    """Return a line for each prompt: its name, its cached tokens, its text."""
    lines = []
    for name, prompt in manifest.prompts.by_name.items():
        prefix = manifest.prefixes.get(name)
        cached = "" if prefix is None else f" ({len(prefix.ids)} tokens, key/value cache stored)"
        after = f" … {prompt.back!r}" if prompt.back else ""
        lines.append(f"- `{name}`{cached}: {prompt.front!r}{after}")
    return "\n".join(lines) or "None."


def _quantised(manifest: Manifest) -> str:
    """Return how weights were quantised as a section; nothing where they were not."""
    quantised = manifest.quantised
    if quantised is None:
        return ""
    reasons = "".join(f"- `{name}`: {why}\n" for name, why in quantised.unquantized.items())
    return f"""
## Quantisation

Int8 on {quantised.calibration_texts} texts, {quantised.calibration_tokens:,} tokens. \
Everything that is not quantised is {quantised.compute_dtype}. These linear layers, named by their \
input, are not quantised:

{reasons or "None."}
"""


def _speed(artifact: Artifact) -> str:
    """Return the timings as a section; nothing where there are none."""
    bench = read_bench(artifact)
    if bench is None or not bench.runs:
        return ""
    sections = []
    for run in bench.runs:
        prompt = f", with the prompt `{run.prompt}`" if run.prompt else ""
        against = f" {run.baseline.name}, {run.baseline.compute} |" if run.baseline else ""
        rows = "\n".join(
            f"| {row.batch} x {row.tokens} | {row.p50_ms:.1f} | {row.p99_ms:.1f} | "
            f"{row.texts_per_second.value:.1f} ({row.texts_per_second.low:.1f} to "
            f"{row.texts_per_second.high:.1f}) |"
            + (
                f" {row.versus.ratio.value:.2f} x ({row.versus.ratio.low:.2f} to "
                f"{row.versus.ratio.high:.2f}): {row.versus.verdict} |"
                if row.versus
                else ""
            )
            for row in run.rows
        )
        sections.append(
            f"""{run.compute} on {run.environment.hardware}{prompt}:

| batch x tokens | p50 ms | p99 ms | texts a second |{against}
|---|---|---|---|{"---|" if against else ""}
{rows}
"""
        )
    return "\n## Speed\n\n" + "\n".join(sections)


def _bound(word: str, value: float | None) -> str:
    return "" if value is None else f" ({word} {value})"


def _vectors(parity: VectorParity) -> str:
    """Return the figures of the vectors as a table."""
    thresholds = parity.thresholds
    batch1 = ""
    if parity.batch1_worst_cosine is not None:
        bound = _bound("at least", thresholds.batch1_min_cosine)
        batch1 = (
            f"\n| batch size 1 against padded batches, worst cosine{bound} | "
            f"{parity.batch1_worst_cosine:.7f} |"
        )
    return f"""This artifact ({parity.candidate}) and the PyTorch model ({parity.reference}) \
embedded the same texts on {parity.hardware}.
Method: {parity.method}.

| verdict | **{parity.verdict}** |
|---|---|
| worst cosine{_bound("at least", thresholds.min_cosine)} | {parity.worst_cosine:.7f} |
| mean cosine | {parity.mean_cosine:.7f} |
| mean loss, 1 - cosine{_bound("at most", thresholds.max_loss)} | {parity.loss:.2e} |
| largest difference of a value | {parity.max_abs:.2e} |{batch1}
| texts | {parity.texts}, the longest of {parity.longest_tokens:,} tokens |
| prompts | none{"".join(f", `{name}`" for name in parity.prompts)} |"""


def _tasks(parity: TaskParity) -> str:
    """Return the tasks' verdicts as a section."""
    rows = "\n".join(
        f"| {task.name}{'*' if task.trained_on else ''} | {task.metric} | "
        f"{task.difference.reference:.4f} | {task.difference.candidate:.4f} | "
        f"{task.difference.difference:+.4f} | {task.difference.low:+.4f} to "
        f"{task.difference.high:+.4f} | {task.difference.margin:.4f} | "
        f"{task.difference.noise_floor:.4f} | {task.verdict} |"
        for task in parity.tasks
    )
    mean = parity.mean
    trained = (
        "\n\n\\* The model's training data includes this task's data."
        if any(task.trained_on for task in parity.tasks)
        else ""
    )
    return f"""
### Tasks: {parity.verdict}

mteb {parity.versions.get("mteb", "")} scored this artifact ({parity.candidate}) and the PyTorch \
model ({parity.reference}) on {len(parity.tasks)} tasks, on {parity.hardware}.
A task passes if the whole 95 % interval of the difference lies above minus the margin, which was
fixed beforehand. The interval is from a paired bootstrap over distinct texts. The noise floor is
how much the PyTorch model's own score changes when it embeds in other batches.

| task | metric | reference | artifact | difference | 95 % interval | margin | noise | verdict |
|---|---|---|---|---|---|---|---|---|
{rows}
| mean over tasks | | {mean.reference:.4f} | {mean.candidate:.4f} | {mean.difference:+.4f} | \
{mean.low:+.4f} to {mean.high:+.4f} | {mean.margin:.4f} | {mean.noise_floor:.4f} | \
**{parity.verdict}** |{trained}

{_standings(parity.summary)}
"""


def _standings(summary: Summary) -> str:
    """Return the means, beside those of published models, as a table."""
    kinds = list(summary.standings[0].by_type)
    rows = "\n".join(
        f"| {standing.model} | {'-' if standing.borda_rank is None else standing.borda_rank} | "
        f"{standing.mean_over_tasks:.4f} | {standing.mean_over_types:.4f} | "
        + " | ".join(
            f"{standing.by_type[kind]:.4f}" if kind in standing.by_type else "-" for kind in kinds
        )
        + " |"
        for standing in summary.standings
    )
    return f"""Mean scores beside those of published models, as a sanity check only: {summary.note}.

| model | Borda rank | over tasks | over types | {" | ".join(kinds)} |
|{"---|" * (4 + len(kinds))}
{rows}"""
