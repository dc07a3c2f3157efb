"""The main flow: a recipe becomes a proved artifact.

Recipe → Prepared → Calibration (where layers are quantised) → Artifact in a staged folder →
baked prompts → VectorParity → engines (where they are asked for)
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import MANIFEST_FILE, PARITY_FILE
from anna_export.artifact.prefixes import with_prefixes
from anna_export.calibrate.run import calibrate
from anna_export.engines.build import build as build_engines
from anna_export.errors import ParityError
from anna_export.export.bake import bake
from anna_export.export.prepare import Prepared, prepare
from anna_export.export.recipe import Recipe
from anna_export.export.write import write_artifact
from anna_export.files.atomic import replace_folder, staged
from anna_export.files.disk import require_disk
from anna_export.progress import Progress, Stage
from anna_export.quantise.calibration import Calibration
from anna_export.report.card import add_parity
from anna_export.verify.parity_report import ParityReport, VectorParity
from anna_export.verify.prove import prove


@dataclass(frozen=True, slots=True)
class Exported:
    """The artifact, its proof (None if not asked for), and seconds by stage."""

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
    prepared, timer = prepare(recipe), _Timer(stage)
    with staged(recipe.out, overwrite=recipe.overwrite, holding=MANIFEST_FILE) as folder:
        # only now: what a killed export had left here is gone
        require_disk(recipe.out, prepared.disk_bytes)
        calibration = _calibrate(prepared, timer)
        with timer.stage("merge and write", "bytes") as progress:
            artifact = write_artifact(prepared, calibration, folder, progress)
        artifact = _bake_prompts(prepared, artifact, timer)
        parity = _prove(recipe, artifact, timer)
        artifact = add_parity(artifact, ParityReport(parity) if parity is not None else None)
        shutil.rmtree(recipe.calibration_folder, ignore_errors=True)
        if parity is not None and parity.verdict != "pass":
            replace_folder(folder, recipe.rejected, overwrite=True)
            rejected = Artifact(recipe.rejected, artifact.manifest)
            raise RejectedError(Exported(rejected, parity, timer.seconds))
        artifact = _build_engines(recipe, artifact, timer)
    return Exported(Artifact(recipe.out, artifact.manifest), parity, timer.seconds)


class _Timer:
    """Shows stages and keeps how long each took."""

    def __init__(self, stage: Stage) -> None:
        self.show = stage
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Time a step that shows its own stages."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    @contextmanager
    def stage(self, name: str, unit: str) -> Iterator[Progress | None]:
        """Show a stage and time it."""
        with self.time(name), self.show(name, unit) as progress:
            yield progress


def _calibrate(prepared: Prepared, timer: _Timer) -> Calibration | None:
    if prepared.texts is None:
        return None
    with timer.time("calibrate"):
        return calibrate(
            prepared.checkpoint,
            prepared.texts,
            prepared.tokeniser,
            prepared.calibration_request,
            timer.show,
        )


def _bake_prompts(prepared: Prepared, artifact: Artifact, timer: _Timer) -> Artifact:
    names = prepared.prompts.by_name
    if not names:
        return artifact
    with timer.stage("bake prompts", "tokens") as progress:
        baked = bake(artifact, names, prepared.tokeniser, prepared.checkpoint, progress)
    return with_prefixes(artifact, baked)


def _prove(recipe: Recipe, artifact: Artifact, timer: _Timer) -> VectorParity | None:
    if not recipe.verify:
        return None
    with timer.stage("prove", "texts") as progress:
        return prove(artifact, recipe.model, recipe.adapter, progress)


def _build_engines(recipe: Recipe, artifact: Artifact, timer: _Timer) -> Artifact:
    if recipe.engines is None:
        return artifact
    with timer.time("build engines"):
        return build_engines(artifact, recipe.engines, timer.show).artifact
