"""anna-export inspect."""

import json
from pathlib import Path

import click

from anna_export.cli import options, shown


@click.command(
    "inspect",
    cls=options.Verb,
    example="anna-export inspect artifact --check",
)
@options.artifact_argument
@click.option("--check", is_flag=True, help="Hash every file, large weights and evidence too.")
@shown.json_option
def command(artifact: Path, check: bool, as_json: bool) -> None:
    """Show what an artifact is, how it was made and what is proved."""
    from anna_export.artifact import PARITY_FILE, open_artifact, read_evidence

    opened = open_artifact(artifact, check=check)
    manifest, parity = opened.manifest, read_evidence(opened, PARITY_FILE)
    if as_json:
        shown.print_json(json.loads(manifest.model_dump_json()) | {"parity": parity})
        return
    spec, contract, source = manifest.spec, manifest.contract, manifest.source
    rows = {
        "artifact": str(artifact),
        "artifact_id": manifest.artifact_id,
        "made": f"{manifest.created} from {source.model}"
        + (f" with {source.adapter}" if source.adapter else ""),
        "precision": str(manifest.precision),
        "size": f"{shown.size(opened.size_bytes)} in {len(manifest.files)} files",
        "model": f"{spec.parameters:,} parameters, {spec.layers} layers, {spec.heads} query and "
        f"{spec.kv_heads} key/value heads of {spec.head_dim}",
        "vectors": f"{spec.dim} dimensions, unit length",
        "longest text": f"{contract.max_tokens} tokens, prompt and end token included",
        "prompts": ", ".join(manifest.prompts.texts) or "none",
        "graphs": ", ".join(f"{target}: {name}" for target, name in manifest.graphs.items()),
        "files": "every hash holds"
        if check
        else "every size and the smaller files' hashes hold (--check: every hash)",
    }
    if parity is None:
        rows["proof"] = "none; run anna-export verify"
    else:
        covers = manifest.evidence[PARITY_FILE].covers == manifest.artifact_id
        rows["proof"] = f"{parity['verdict']}: worst cosine {parity['worst_cosine']:.7f}" + (
            "" if covers else " (of another artifact)"
        )
        rows |= {name: parity[name] for name in ("method", "reference", "candidate", "hardware")}
    shown.print_rows(rows)
