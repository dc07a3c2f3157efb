"""The main flow: a recipe becomes a proved artifact.

Recipe → Checkpoint → graphs → staged folder → Parity → Artifact
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import onnx_ir as ir

from anna_export import artifact as artifacts
from anna_export import quantise
from anna_export.artifact import Artifact, FileEntry, Golden, Manifest, Source
from anna_export.card import add_proof
from anna_export.checkpoint import Checkpoint
from anna_export.data_file import DATA_FILE, write_data_file
from anna_export.errors import ParityError
from anna_export.plan import forecast
from anna_export.progress import Progress, Stage
from anna_export.prompts import find_prompts
from anna_export.quantise.scheme import CANONICAL
from anna_export.spec import Precision
from anna_export.st_files import write_st_files
from anna_export.staging import (
    replace_folder,
    require_absent,
    require_disk,
    require_outside,
    staged,
)
from anna_export.tokenise import (
    TOKENIZER_FILES,
    TokenContract,
    Tokeniser,
    find_tokenizer,
    read_contract,
)
from anna_export.verify.prove import prove
from anna_export.verify.texts import ODD_TEXTS
from anna_export.verify.vectors import Parity
from anna_export.versions import installed


@dataclass(frozen=True, slots=True)
class Recipe:
    """What was asked: max_tokens None takes the model's own limit."""

    model: Path
    adapter: Path | None
    out: Path
    precision: Precision
    max_tokens: int | None = None
    overwrite: bool = False
    verify: bool = True

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folders that are read."""
        return (self.model,) if self.adapter is None else (self.model, self.adapter)

    @property
    def tokenizer(self) -> Path:
        """The one of them that the tokenizer is read from."""
        return find_tokenizer(self.model, self.adapter)


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of it: the artifact, its proof (None if not asked for), seconds by stage."""

    artifact: Artifact
    parity: Parity | None
    seconds: Mapping[str, float]


class RejectedError(ParityError):
    """The artifact's vectors are not the reference's; it is kept in `OUT.rejected`."""

    def __init__(self, exported: Exported) -> None:
        assert exported.parity is not None
        folder = exported.artifact.folder
        super().__init__(
            f"expected the reference's vectors, found: {'; '.join(exported.parity.reasons)}; the "
            f"artifact is in {folder}, its figures in {folder / artifacts.PARITY_FILE}"
        )
        self.exported = exported


def export(recipe: Recipe, stage: Stage) -> Exported:
    """Build one artifact and prove it; nothing is left behind if any step fails.

    Raises:
        AnnaError: If the input cannot be used, or the output cannot be written.
        RejectedError: If the artifact's vectors are not the reference's.
    """
    require_outside(recipe.out, *recipe.sources)
    require_absent(recipe.out, overwrite=recipe.overwrite, holding=artifacts.MANIFEST_FILE)
    # where a rejected artifact would go, which is known only when all work is done
    require_absent(_rejected(recipe.out), overwrite=True, holding=artifacts.MANIFEST_FILE)
    checkpoint = Checkpoint.open(recipe.model, recipe.adapter)
    contract = read_contract(recipe.tokenizer, checkpoint.spec, recipe.max_tokens, recipe.model)
    _require_room_for_prompts(recipe, contract)
    scheme = quantise.load(recipe.precision)
    seconds: dict[str, float] = {}
    parity = None
    with staged(recipe.out, overwrite=recipe.overwrite, holding=artifacts.MANIFEST_FILE) as folder:
        # only now: what a killed export had left here is gone
        require_disk(recipe.out, forecast(checkpoint.spec, contract, scheme.precision).disk_bytes)
        with _timed(seconds, "merge and write"), stage("merge and write", "bytes") as progress:
            graphs = scheme.graphs(checkpoint, contract.max_tokens)
            artifact = _write(folder, recipe, checkpoint, contract, graphs, progress)
        if recipe.verify:
            with _timed(seconds, "prove"), stage("prove", "texts") as progress:
                parity = prove(artifact, recipe.model, recipe.adapter, progress)
        exported = Exported(add_proof(artifact, parity), parity, seconds)
        if parity is not None and parity.verdict != "pass":
            raise _reject(folder, recipe.out, exported)
    return replace(exported, artifact=Artifact(recipe.out, exported.artifact.manifest))


def _require_room_for_prompts(recipe: Recipe, contract: TokenContract) -> None:
    """Let a prompt that is too long be refused now, not when gigabytes are written."""
    tokeniser = Tokeniser.open(recipe.tokenizer, contract)
    for prompt in find_prompts(recipe.model, recipe.adapter).texts.values():
        tokeniser.ids([""], prompt)


def _write(
    folder: Path,
    recipe: Recipe,
    checkpoint: Checkpoint,
    contract: TokenContract,
    graphs: Mapping[str, ir.Model],
    progress: Progress | None,
) -> Artifact:
    """Write everything that embeds, then the manifest that names it."""
    prompts = find_prompts(recipe.model, recipe.adapter)
    for name in TOKENIZER_FILES:
        if (recipe.tokenizer / name).exists():
            shutil.copyfile(recipe.tokenizer / name, folder / name)
    written = write_data_file(folder, graphs, progress)
    names = {target: _graph_name(target) for target in graphs}
    for target, model in graphs.items():
        ir.save(model, folder / names[target])
    write_st_files(folder, prompts)
    files = {
        path.name: artifacts.hash_file(path)
        for path in sorted(folder.iterdir())
        if path.name != DATA_FILE
    }
    files[DATA_FILE] = FileEntry(sha256=written.sha256, size_bytes=written.size_bytes)
    tokeniser = Tokeniser.open(folder, contract)
    manifest = Manifest(
        schema_version=artifacts.SCHEMA_VERSION,
        artifact_id=artifacts.identity(files, checkpoint.spec, contract),
        precision=recipe.precision,
        spec=checkpoint.spec,
        contract=contract,
        prompts=prompts,
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
    artifacts.write_manifest(folder, manifest)
    return Artifact(folder, manifest)


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
