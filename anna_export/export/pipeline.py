"""The main flow: a recipe becomes a proved artifact.

Recipe → Checkpoint → Calibration (where the precision needs one) → graphs → staged folder →
prefixes → Parity → engines (where they are asked for) → Artifact
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import onnx_ir as ir

from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import (
    CALIBRATION_FILE,
    MANIFEST_FILE,
    PARITY_FILE,
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
from anna_export.artifact.prefixes import with_prefixes
from anna_export.calibrate.run import calibrate
from anna_export.calibrate.texts import calibration_texts
from anna_export.engines.build import build as build_engines
from anna_export.engines.build import require_buildable
from anna_export.errors import ParityError
from anna_export.export.bake import bake, prefix_bytes
from anna_export.export.recipe import Recipe
from anna_export.files.atomic import (
    replace_folder,
    require_absent,
    require_outside,
    staged,
    write_text,
)
from anna_export.files.disk import require_disk
from anna_export.graph.external_data import DATA_FILE, write_data_file
from anna_export.graph.names import CANONICAL
from anna_export.machine.versions import installed
from anna_export.progress import Progress, Stage
from anna_export.quantise.calibration import Calibration
from anna_export.quantise.footprint import DEFAULT_TOKENS, forecast
from anna_export.quantise.scheme import Scheme
from anna_export.report.card import add_parity
from anna_export.text.framing import TOKENIZER_FILES, TokenFraming, read_framing
from anna_export.text.prompt_file import find_prompts, read_prompt_file
from anna_export.text.prompts import Prompts, write_st_files
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.parity_report import ParityReport, VectorParity
from anna_export.verify.prove import prove
from anna_export.verify.texts import ODD_TEXTS
from anna_export.weights.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of it: the artifact, its proof (None if not asked for), seconds by stage."""

    artifact: Artifact
    parity: VectorParity | None
    seconds: Mapping[str, float]


class RejectedError(ParityError):
    """The artifact's vectors are not the reference's; it is kept in `OUT.rejected`."""

    def __init__(self, exported: Exported) -> None:
        assert exported.parity is not None
        folder = exported.artifact.folder
        super().__init__(
            f"expected the reference's vectors, found: {'; '.join(exported.parity.reasons)}; the "
            f"artifact is in {folder}, its figures in {folder / PARITY_FILE}"
        )
        self.exported = exported


def export(recipe: Recipe, stage: Stage) -> Exported:
    """Build one artifact and prove it; nothing is left behind if any step fails.

    Raises:
        AnnaError: If the input cannot be used, or the output cannot be written.
        RejectedError: If the artifact's vectors are not the reference's.
    """
    require_outside(recipe.out, *recipe.sources)
    require_absent(recipe.out, overwrite=recipe.overwrite, holding=MANIFEST_FILE)
    # where a rejected artifact would go, which is known only when all work is done
    require_absent(_rejected(recipe.out), overwrite=True, holding=MANIFEST_FILE)
    scheme = recipe.scheme
    if recipe.engines is not None:
        require_buildable(recipe.precision, recipe.engines)
    checkpoint = Checkpoint.open(recipe.model, recipe.adapter)
    framing = read_framing(recipe.tokenizer, checkpoint.spec, recipe.max_tokens, recipe.model)
    tokeniser = Tokeniser.open(recipe.tokenizer, framing)
    prompts = (
        find_prompts(recipe.model, recipe.adapter)
        if recipe.prompts is None
        else read_prompt_file(recipe.prompts)
    )
    # now, not when gigabytes are written
    tokeniser.require_room(prompts.by_name.values())
    texts = None
    if scheme.linear is not None:
        texts = calibration_texts(recipe.calibration, tokeniser, prompts)
    seconds: dict[str, float] = {}
    calibration, parity = None, None
    with staged(recipe.out, overwrite=recipe.overwrite, holding=MANIFEST_FILE) as folder:
        # only now: what a killed export had left here is gone
        tokens = DEFAULT_TOKENS if texts is None else texts.tokens
        needed = forecast(checkpoint.spec, framing, scheme, tokens)
        baked_bytes = prefix_bytes(checkpoint.spec, scheme, tokeniser, prompts.by_name.values())
        require_disk(recipe.out, needed.disk_bytes + baked_bytes)
        if texts is not None:
            with _timed(seconds, "calibrate"):
                calibration = calibrate(checkpoint, texts, tokeniser, recipe.request, stage)
        with _timed(seconds, "merge and write"), stage("merge and write", "bytes") as progress:
            graphs = scheme.graphs(checkpoint, framing.max_tokens, calibration)
            artifact = _write(
                folder, recipe, checkpoint, framing, prompts, graphs, calibration, progress
            )
        if prompts.by_name:
            with _timed(seconds, "bake prompts"), stage("bake prompts", "tokens") as progress:
                baked = bake(artifact, prompts.by_name, checkpoint, progress)
            artifact = with_prefixes(artifact, baked)
        if recipe.verify:
            with _timed(seconds, "prove"), stage("prove", "texts") as progress:
                parity = prove(artifact, recipe.model, recipe.adapter, progress)
        proof = ParityReport(parity) if parity is not None else None
        exported = Exported(add_parity(artifact, proof), parity, seconds)
        shutil.rmtree(recipe.work, ignore_errors=True)
        if parity is not None and parity.verdict != "pass":
            raise _reject(folder, recipe.out, exported)
        if recipe.engines is not None:
            with _timed(seconds, "build engines"):
                built = build_engines(exported.artifact, recipe.engines, stage)
            exported = replace(exported, artifact=built.artifact)
    return replace(exported, artifact=Artifact(recipe.out, exported.artifact.manifest))


def _write(
    folder: Path,
    recipe: Recipe,
    checkpoint: Checkpoint,
    framing: TokenFraming,
    prompts: Prompts,
    graphs: Mapping[str, ir.Model],
    calibration: Calibration | None,
    progress: Progress | None,
) -> Artifact:
    """Write everything that embeds, then the manifest that names it."""
    for name in TOKENIZER_FILES:
        if (recipe.tokenizer / name).exists():
            shutil.copyfile(recipe.tokenizer / name, folder / name)
    written = write_data_file(folder, graphs, progress)
    names = {target: _graph_name(target) for target in graphs}
    for target, model in graphs.items():
        ir.save(model, folder / names[target])
    write_st_files(folder, prompts)
    if calibration is not None:
        text = json.dumps(calibration.to_json(), indent=1) + "\n"
        write_text(folder / CALIBRATION_FILE, text)
    files = {
        path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.name != DATA_FILE
    }
    files[DATA_FILE] = FileEntry(sha256=written.sha256, size_bytes=written.size_bytes)
    tokeniser = Tokeniser.open(folder, framing)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        artifact_id=identity(files, checkpoint.spec, framing),
        precision=recipe.precision,
        quantised=_quantised(recipe.scheme, calibration),
        spec=checkpoint.spec,
        framing=framing,
        prompts=prompts,
        prefixes={},
        golden=[
            Golden(text=text, ids=ids)
            for text, ids in zip(ODD_TEXTS, tokeniser.ids(ODD_TEXTS), strict=True)
        ],
        graphs=names,
        files=files,
        evidence={},
        source=Source(
            model=recipe.model.resolve().name,
            adapter=recipe.adapter.resolve().name if recipe.adapter else None,
            sha256=checkpoint.source_hashes(),
        ),
        versions=installed(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_manifest(folder, manifest)
    return Artifact(folder, manifest)


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


def _rejected(out: Path) -> Path:
    out = out.resolve()
    return out.with_name(f"{out.name}.rejected")


def _reject(folder: Path, out: Path, exported: Exported) -> RejectedError:
    kept = _rejected(out)
    replace_folder(folder, kept, overwrite=True)
    return RejectedError(replace(exported, artifact=Artifact(kept, exported.artifact.manifest)))


def _graph_name(target: str) -> str:
    return "model.onnx" if target == CANONICAL else f"model.{target}.onnx"


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
