"""anna-export inspect."""

import json
from pathlib import Path

import click

from anna_export.cli import options, shown


@click.command("inspect")
@click.argument("artifact", type=options.folder)
@click.option("--check", is_flag=True, help="Hash every file, large weights and evidence too.")
@shown.json_option
def command(artifact: Path, check: bool, as_json: bool) -> None:
    r"""Show what an artifact is, how it was made, and what is proved of it.

    \b
    Example:
      anna-export inspect artifact --check
    """
    from anna_export.artifact import PARITY_FILE, open_artifact

    opened = open_artifact(artifact, check=check)
    manifest = opened.manifest
    if as_json:
        shown.print_json(json.loads(manifest.model_dump_json()))
        return
    spec, contract, source = manifest.spec, manifest.contract, manifest.source
    rows = {
        "artifact": str(artifact),
        "id": manifest.artifact_id,
        "made": f"{manifest.created} from {source.model}"
        + (f" with {source.adapter}" if source.adapter else ""),
        "precision": str(manifest.precision),
        "size": f"{shown.size(opened.size_bytes)} in {len(manifest.files)} files",
        "model": f"{spec.layers} layers, {spec.heads}/{spec.kv_heads} heads of {spec.head_dim}, "
        f"{spec.parameters:,} parameters",
        "vectors": f"{spec.dim} dimensions, unit length",
        "longest text": f"{contract.max_tokens} tokens, prompt and end token included",
        "prompts": ", ".join(manifest.prompts.texts) or "none",
        "graphs": ", ".join(f"{target}: {name}" for target, name in manifest.graphs.items()),
        "files": "all hashes hold"
        if check
        else "sizes and small files' hashes hold (--check: all)",
    }
    if PARITY_FILE in manifest.evidence:
        parity = json.loads((artifact / PARITY_FILE).read_text(encoding="utf-8"))
        covers = manifest.evidence[PARITY_FILE].covers == manifest.artifact_id
        rows["proof"] = (
            f"{parity['verdict']}: worst cosine {parity['worst_cosine']:.7f} against "
            f"{parity['reference']}" + ("" if covers else " (of another artifact)")
        )
    else:
        rows["proof"] = "none; run anna-export verify"
    shown.print_rows(rows)
