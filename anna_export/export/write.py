"""Write an artifact's folder: tokenizer, weights, graphs, sentence-transformers files, manifest."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import onnx_ir as ir

from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import (
    CALIBRATION_FILE,
    SCHEMA_VERSION,
    FileEntry,
    Golden,
    Manifest,
    Quantised,
    Source,
    hash_file,
    identity,
    write_manifest,
)
from anna_export.export.prepare import Prepared
from anna_export.export.recipe import Recipe
from anna_export.files.atomic import write_text
from anna_export.files.hub_cache import folder_name
from anna_export.files.model_folders import in_order
from anna_export.graph.external_data import DATA_FILE, write_data_file
from anna_export.graph.names import CANONICAL
from anna_export.machine.versions import installed
from anna_export.progress import Progress
from anna_export.quantise.calibration import Calibration
from anna_export.quantise.scheme import Scheme
from anna_export.text.st_files import write_artifact_modules, write_prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.text.tokenizer_folder import write_tokenizer
from anna_export.verify.texts import ODD_TEXTS
from anna_export.weights.checkpoint import Checkpoint
from anna_export.weights.merge import write_config


def write_artifact(
    prepared: Prepared,
    calibration: Calibration | None,
    folder: Path,
    progress: Progress | None,
) -> Artifact:
    """Merge, quantise and write everything that embeds, then the manifest that names it.

    Args:
        prepared: What is exported.
        calibration: What was measured of it, where layers are quantised.
        folder: An empty folder.
        progress: Told how many bytes of weights are written.
    """
    scheme, framing = prepared.scheme, prepared.tokeniser.framing
    graphs = scheme.graphs(prepared.checkpoint, framing.max_tokens, calibration)
    graph_files = {target: _graph_file(target) for target in graphs}
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        artifact_id="",
        precision=scheme.precision,
        quantised=_quantised(scheme, calibration),
        spec=prepared.checkpoint.spec,
        framing=framing,
        framing_source=dict(prepared.framing_source),
        prompts=prepared.prompts,
        given_prompts=sorted(prepared.prompts.by_name) if prepared.recipe.prompts else [],
        similarity=prepared.checkpoint.modules.similarity,
        prefixes={},
        golden=_golden(prepared.tokeniser),
        graphs=graph_files,
        files=_write_files(prepared, graphs, graph_files, calibration, folder, progress),
        evidence={},
        source=_source(prepared.recipe, prepared.checkpoint),
        versions=installed(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    artifact_id = identity(manifest.files, manifest.spec, manifest.framing)
    manifest = manifest.model_copy(update={"artifact_id": artifact_id})
    write_manifest(folder, manifest)
    return Artifact(folder, manifest)


def _write_files(
    prepared: Prepared,
    graphs: Mapping[str, ir.Model],
    graph_files: Mapping[str, str],
    calibration: Calibration | None,
    folder: Path,
    progress: Progress | None,
) -> dict[str, FileEntry]:
    """Write all but the manifest, and return their hashes and sizes."""
    framing = prepared.tokeniser.framing
    write_tokenizer(prepared.recipe.tokenizer, folder, framing)
    ids = {f"{end}_token_id": getattr(framing, f"{end}_id") for end in ("bos", "eos", "pad")}
    write_config(prepared.checkpoint, folder, **ids)
    written = write_data_file(folder, graphs, progress)
    for target, model in graphs.items():
        ir.save(model, folder / graph_files[target])
    write_artifact_modules(folder, prepared.checkpoint.spec)
    write_prompts(folder, prepared.prompts, prepared.checkpoint.modules.similarity)
    if calibration is not None:
        text = json.dumps(calibration.to_json(), indent=1) + "\n"
        write_text(folder / CALIBRATION_FILE, text)
    # the weights were hashed while they were written
    paths = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != DATA_FILE
    ]
    weights = FileEntry(sha256=written.sha256, size_bytes=written.size_bytes)
    hashed = {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}
    return hashed | {DATA_FILE: weights}


def _golden(tokeniser: Tokeniser) -> list[Golden]:
    texts = tokeniser.with_tokens(ODD_TEXTS)
    rows = tokeniser.ids(texts)
    return [Golden(text=text, ids=ids) for text, ids in zip(texts, rows, strict=True)]


def _source(recipe: Recipe, checkpoint: Checkpoint) -> Source:
    names = [folder_name(folder) for folder in in_order(recipe.adapter)]
    return Source(
        model=folder_name(recipe.model),
        adapter=names[0] if names else None,
        further_adapters=names[1:],
        sha256=checkpoint.source_hashes(),
    )


def _quantised(scheme: Scheme, calibration: Calibration | None) -> Quantised | None:
    if calibration is None:
        return None
    return Quantised(
        compute_dtype=scheme.compute_dtype,
        calibration_sha256=calibration.texts_sha256,
        calibration_texts=calibration.texts,
        calibration_tokens=calibration.tokens,
        unquantized=calibration.unquantized,
        max_loss=scheme.thresholds.max_loss,
    )


def _graph_file(target: str) -> str:
    return "model.onnx" if target == CANONICAL else f"model.{target}.onnx"
