"""anna-export inspect."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from anna_export.cli import options, shown
from anna_export.console import commands, output
from anna_export.errors import InputError

if TYPE_CHECKING:
    from anna_export.artifact.folder import Artifact
    from anna_export.verify.parity_report import ParityReport


@click.command(
    "inspect",
    cls=commands.Verb,
    example="anna-export inspect artifact --check",
)
@options.artifact_argument
@click.option("--check", is_flag=True, help="Hash every file, large weights and evidence too.")
@click.option(
    "--layers",
    is_flag=True,
    help="Show each linear layer of a quantised artifact: its signal-to-noise ratio, the range of "
    "its input in calibration, and, if it is not quantised, the reason.",
)
@output.json_option
def command(artifact: Path, check: bool, layers: bool, as_json: bool) -> None:
    """Show what an artifact is, how it was made and what is proved."""
    from anna_export.artifact.folder import open_artifact
    from anna_export.verify.parity_file import read_parity

    opened = open_artifact(artifact, check=check)
    if layers:
        _show_layers(opened, as_json)
        return
    report = read_parity(opened)
    if as_json:
        parity = report.to_json() if report else None
        output.print_json(json.loads(opened.manifest.model_dump_json()) | {"parity": parity})
        return
    files = (
        "every hash holds"
        if check
        else "every size and the smaller files' hashes hold (--check: every hash)"
    )
    output.print_rows(_artifact_rows(opened) | {"files": files} | _parity_rows(opened, report))


def _artifact_rows(artifact: "Artifact") -> dict[str, str]:
    """Return what the artifact is and how it was made, by name."""
    manifest = artifact.manifest
    spec, source = manifest.spec, manifest.source
    adapter = f" with {source.adapter}" if source.adapter else ""
    rows = {
        "artifact": str(artifact.folder),
        "artifact_id": manifest.artifact_id,
        "exported": f"{manifest.created} from {source.model}{adapter}",
        "precision": str(manifest.precision),
        "size": f"{output.size(artifact.size_bytes)} in {len(manifest.files)} files",
        "model": f"{spec.parameters:,} parameters, {spec.layers} layers, {spec.heads} query and "
        f"{spec.kv_heads} key/value heads of {spec.head_dim}",
        "vectors": f"{spec.embedding_dim} dimensions, {spec.head.length}, {spec.head.describe()}",
        "longest text": f"{manifest.framing.max_tokens} tokens, prompt and end token included",
        "prompts": shown.baked(artifact),
        "graphs": ", ".join(f"{target}: {name}" for target, name in manifest.graphs.items()),
    }
    if quantised := manifest.quantised:
        rows["calibration"] = (
            f"{quantised.calibration_texts} texts, {quantised.calibration_tokens:,} tokens; "
            f"{len(quantised.unquantized)} linear inputs stay in {quantised.compute_dtype} "
            "(--layers: which and why)"
        )
    return rows


def _parity_rows(artifact: "Artifact", report: "ParityReport | None") -> dict[str, str]:
    """Return the verdict and how it was reached, by name."""
    from anna_export.artifact.manifest import PARITY_FILE

    if report is None:
        return {"proof": "none; run anna-export verify"}
    manifest, parity = artifact.manifest, report.vectors
    current = manifest.evidence[PARITY_FILE].covers == manifest.artifact_id
    rows = {
        "proof": f"{report.verdict}: worst cosine {parity.worst_cosine:.7f}"
        + ("" if current else " (of other weights)"),
        "method": parity.method,
    }
    if tasks := report.tasks:
        rows["tasks"] = (
            f"{tasks.verdict}: {len(tasks.tasks)} tasks, mean score "
            f"{tasks.mean.reference:.4f} -> {tasks.mean.candidate:.4f}"
        )
    return rows | {
        "reference": parity.reference,
        "candidate": parity.candidate,
        "hardware": parity.hardware,
    }


def _show_layers(artifact: "Artifact", as_json: bool) -> None:
    from anna_export.quantise.calibration import read_calibration

    calibration = read_calibration(artifact)
    if calibration is None:
        raise InputError(
            f"expected an artifact in fp8, int8 or int4, found {artifact.manifest.precision} in "
            f"{artifact.folder}; it has no quantised layers"
        )
    if as_json:
        output.print_json(calibration.to_json())
        return
    rows = []
    for module, name in artifact.manifest.spec.linear_modules().items():
        stats = calibration.inputs[name]
        snr = calibration.snr_db.get(module)
        how = (
            f"{snr:.1f} dB"
            if snr is not None
            else f"not quantised: {calibration.unquantized[name]}"
        )
        rows.append(
            (module, f"{stats.amax:.4g}", f"{stats.median:.4g}", f"{stats.clip_amax:.4g}", how)
        )
    output.print_table(("linear layer", "largest", "median", "range", "signal to noise"), rows)
    if calibration.loss is not None:
        output.print_line(f"loss of the emulated model: {calibration.loss:.2e} (1 - cosine)")
