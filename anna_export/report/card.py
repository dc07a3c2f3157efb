"""The model card: what an artifact is, how it was proved, how it is used."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from anna_export.artifact.evidence import add_evidence
from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import CARD_FILE, PARITY_FILE, Manifest
from anna_export.bench.result import read_bench
from anna_export.verify.parity_file import read_parity
from anna_export.verify.parity_report import ParityReport, TaskParity, VectorParity
from anna_export.verify.published import Summary


def add_parity(artifact: Artifact, proof: ParityReport | None) -> Artifact:
    """Write parity.json, if there is a proof, and the card that tells it."""
    if proof is not None:
        text = json.dumps(proof.to_json(), indent=2, ensure_ascii=False) + "\n"
        artifact = add_evidence(artifact, PARITY_FILE, text, proof.vectors.prompts)
    return add_evidence(artifact, CARD_FILE, model_card(artifact, proof))


def add_results(artifact: Artifact, results: Mapping[str, Path]) -> Artifact:
    """Keep mteb's result files, by task, as mteb wrote them: what its leaderboard takes."""
    for path in results.values():
        # organisation__name/revision/Task.json
        name = "/".join((RESULTS_FOLDER, *path.parts[-3:]))
        artifact = add_evidence(artifact, name, path.read_text(encoding="utf-8"))
    return artifact


def model_card(artifact: Artifact, proof: ParityReport | None) -> str:
    """Return the card as Markdown with the metadata block that model hubs read."""
    manifest = artifact.manifest
    spec, framing, source = manifest.spec, manifest.framing, manifest.source
    made_from = f"`{source.model}`" + (
        f" with the LoRA `{source.adapter}`" if source.adapter else ""
    )
    prompts = "\n".join(
        f"- `{name}`{_tokens(manifest, name)}: {prompt.front!r}"
        + (f" … {prompt.back!r}" if prompt.back else "")
        for name, prompt in manifest.prompts.by_name.items()
    )
    return f"""---
library_name: anna-export
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, onnx, embeddings]
---

# Text embeddings, {manifest.precision}

Made from {made_from} by anna-export {manifest.versions.get("anna-export", "")}.

| | |
|---|---|
| dimensions | {spec.dim}, unit length (cosine = dot product) |
| longest text | {framing.max_tokens} tokens, prompt and end token included; longer ones are cut |
| model | {spec.layers} layers, {spec.parameters:,} parameters, last-token pooling |
| size | {artifact.size_bytes / 1e6:.1f} MB |
| artifact | `{manifest.artifact_id}` |

## Proof

{_vectors(proof.vectors) if proof is not None else _UNPROVED}
{_tasks(proof.tasks) if proof is not None and proof.tasks is not None else ""}\
{_quantised(manifest)}{_speed(artifact)}
## Prompts

{prompts or "None."}

## Use

```python
import anna_export

encoder = anna_export.open_encoder("this folder")
vectors = encoder.encode(["a text", "another"])  # (2, {spec.dim}) float32
```
"""


def add_card(artifact: Artifact) -> Artifact:
    """Write the card anew, from what is proved and timed by now."""
    return add_evidence(artifact, CARD_FILE, model_card(artifact, current_parity(artifact)))


def current_parity(artifact: Artifact) -> ParityReport | None:
    """Return the proof of these weights; None where there is none."""
    entry = artifact.manifest.evidence.get(PARITY_FILE)
    if entry is None or entry.covers != artifact.manifest.artifact_id:
        return None
    return read_parity(artifact)


RESULTS_FOLDER: Final = "mteb"
_UNPROVED: Final = "Not verified: the export ran with `--no-verify`."


def _tokens(manifest: Manifest, name: str) -> str:
    baked = manifest.prefixes.get(name)
    return f" ({len(baked.ids)} tokens, computed ahead)" if baked is not None else ""


def _quantised(manifest: Manifest) -> str:
    quantised = manifest.quantised
    if quantised is None:
        return ""
    kept = "".join(f"- `{name}`: {why}\n" for name, why in quantised.unquantized.items())
    return f"""
## Quantisation

Calibrated on {quantised.calibration_texts} texts of {quantised.calibration_tokens:,} tokens; \
what is not quantised is {quantised.compute_dtype}. Linear layers kept in it, by their input:

{kept or "None."}
"""


def _speed(artifact: Artifact) -> str:
    """Return what was timed as a section; nothing where nothing was."""
    bench = read_bench(artifact)
    if bench is None or not bench.runs:
        return ""
    sections = []
    for run in bench.runs:
        prompt = f", behind the prompt `{run.prompt}`" if run.prompt else ""
        against = f" {run.rival.name}, {run.rival.arithmetic} |" if run.rival else ""
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
            f"""{run.arithmetic} on {run.environment.hardware}{prompt}:

| batch x tokens | p50 ms | p99 ms | texts a second |{against}
|---|---|---|---|{"---|" if against else ""}
{rows}
"""
        )
    return "\n## Speed\n\n" + "\n".join(sections)


def _bound(word: str, value: float | None) -> str:
    return "" if value is None else f" ({word} {value})"


def _vectors(parity: VectorParity) -> str:
    alone = (
        f"\n| a text alone and in a batch, worst cosine | {parity.batch1_worst_cosine:.7f} |"
        if parity.batch1_worst_cosine is not None
        else ""
    )
    return f"""Against {parity.reference}; measured with {parity.candidate} on {parity.hardware}:
{parity.method}.

| verdict | **{parity.verdict}** |
|---|---|
| worst cosine{_bound("at least", parity.thresholds.min_cosine)} | {parity.worst_cosine:.7f} |
| mean cosine | {parity.mean_cosine:.7f} |
| mean loss, 1 - cosine{_bound("at most", parity.thresholds.max_loss)} | {parity.loss:.2e} |
| largest difference | {parity.max_abs:.2e} |{alone}
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
        "\n\n\\* The model was trained on data of this task."
        if any(task.trained_on for task in parity.tasks)
        else ""
    )
    return f"""
### Tasks: {parity.verdict}

Scores of mteb {parity.versions.get("mteb", "")} on {len(parity.tasks)} tasks, as \
{parity.candidate}, against {parity.reference}, on {parity.hardware}.
A task passes if the whole 95 % interval of the difference, by a paired bootstrap over distinct
texts, lies above minus the margin, which was fixed beforehand. The noise floor is the reference
against itself in other batches.

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
        f"| {one.model} | {'-' if one.borda_rank is None else one.borda_rank} | "
        f"{one.mean_over_tasks:.4f} | {one.mean_over_types:.4f} | "
        + " | ".join(f"{one.by_type[kind]:.4f}" if kind in one.by_type else "-" for kind in kinds)
        + " |"
        for one in summary.standings
    )
    return f"""Means, beside published ones as a check of sanity: {summary.note}.

| model | Borda rank | over tasks | over types | {" | ".join(kinds)} |
|{"---|" * (4 + len(kinds))}
{rows}"""
