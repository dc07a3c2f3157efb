"""The artifact: a folder with everything that embeds, a manifest that names it, and its evidence.

Identity (graphs, weights, tokenizer, spec) has one hash, `artifact_id`. Evidence (parity, card) is
listed beside it and names the identity it covers, so that adding some leaves the rest valid.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from anna_export.containment import is_inside
from anna_export.errors import DamagedError, InputError, MissingError
from anna_export.prompts import PROMPTS_FILE, Prompts, read_prompts
from anna_export.spec import EmbeddingSpec, Precision, read_json
from anna_export.staging import locked, write_bytes, write_text
from anna_export.tokenise import TOKENIZER_FILE, TOKENIZER_FILES, TokenContract, Tokeniser

MANIFEST_FILE = "manifest.json"
PARITY_FILE = "parity.json"
CARD_FILE = "README.md"
CALIBRATION_FILE = "calibration.json"
PREFIX_FOLDER: Final = "prefixes"
ENGINE_FOLDER: Final = "engines"
SCHEMA_VERSION: Final = 2
# Loading hashes files up to this many bytes in all; larger ones by size, with check=True by hash.
HASHED_BYTES = 256 << 20


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Model):
    """A file's hash and size."""

    sha256: str
    size_bytes: int


class Evidence(FileEntry):
    """A file that says something about an artifact, and which one."""

    covers: str  # artifact_id
    prompts: dict[str, str]  # name → sha256 of the prompts it was made with


class StoredPrefix(FileEntry):
    """The file of a prompt's keys and values, and what they are of."""

    file: str
    prompt: str  # sha256 of the prompt
    ids: list[int]  # their token ids
    exact: bool  # computed by what the artifact was made from, or else by its stored weights


class Golden(_Model):
    """A text and the token ids it must become."""

    text: str
    ids: list[int]


class Source(_Model):
    """Where the weights came from: folder names and the sha256 of identifying files."""

    model: str
    adapter: str | None
    sha256: dict[str, str]


class Quantised(_Model):
    """How a quantised artifact came to its numbers; the rest is in calibration.json."""

    arithmetic: Precision  # of what is not quantised
    ranges: str = "max"  # earlier versions could choose "percentile" or "mse"
    calibration_sha256: str  # of the token ids calibrated on
    calibration_texts: int
    calibration_tokens: int
    high_precision: dict[str, str]  # linear input whose layers are not quantised → why
    max_loss: float | None  # what its proof is held to


class Manifest(_Model):
    """What manifest.json holds."""

    schema_version: Literal[2]
    artifact_id: str
    precision: Precision
    quantised: Quantised | None = None
    spec: EmbeddingSpec
    contract: TokenContract
    prompts: Prompts
    prefixes: dict[str, StoredPrefix]  # by the prompt's name
    golden: list[Golden]
    graphs: dict[str, str]  # target → file
    files: dict[str, FileEntry]
    evidence: dict[str, Evidence]
    source: Source
    versions: dict[str, str]
    created: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """An opened artifact."""

    folder: Path
    manifest: Manifest

    @property
    def size_bytes(self) -> int:
        """Bytes of all files that embed."""
        entries = (*self.manifest.files.values(), *self.manifest.prefixes.values())
        return sum(entry.size_bytes for entry in entries)

    def graph(self, target: str) -> Path:
        """Return the graph file for a target.

        Raises:
            InputError: If the artifact has none.
        """
        if target not in self.manifest.graphs:
            raise InputError(
                f"expected a graph for one of {sorted(self.manifest.graphs)}, found {target!r}"
            )
        return self.folder / self.manifest.graphs[target]

    def tokeniser(self) -> Tokeniser:
        """Return the tokeniser, checked against the golden token ids.

        Raises:
            DamagedError: If this machine's tokenizer library gives other ids.
        """
        tokeniser = Tokeniser.open(self.folder, self.manifest.contract)
        golden = self.manifest.golden
        for entry, ids in zip(golden, tokeniser.ids([g.text for g in golden]), strict=True):
            if ids != entry.ids:
                raise DamagedError(
                    f"expected the golden token ids of {entry.text[:40]!r}, found others; "
                    f"install tokenizers=={self.manifest.versions.get('tokenizers')}"
                )
        return tokeniser


def identity(files: Mapping[str, FileEntry], spec: EmbeddingSpec, contract: TokenContract) -> str:
    """Return the artifact_id: sha256 over the sorted hashes of what decides a vector."""
    deciding = (*TOKENIZER_FILES, CALIBRATION_FILE)
    names = [name for name in files if name in deciding or name.startswith("model.")]
    lines = [f"{name} {files[name].sha256}" for name in sorted(names)]
    lines.append(json.dumps([asdict(spec), asdict(contract)], sort_keys=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hash_file(path: Path) -> FileEntry:
    """Return a file's sha256 and size."""
    with path.open("rb") as file:
        return FileEntry(
            sha256=hashlib.file_digest(file, "sha256").hexdigest(),
            size_bytes=os.fstat(file.fileno()).st_size,
        )


def open_artifact(folder: Path, *, check: bool = False) -> Artifact:
    """Open an artifact and look for damage.

    Args:
        folder: Where it is.
        check: Hash every file, evidence too, instead of up to 256 MiB in all.

    Raises:
        MissingError: If it is no artifact.
        DamagedError: Naming each file that is missing or not what the manifest says.
    """
    manifest = _read_manifest(folder)
    # these are hashed when they are first used
    prefixes = {entry.file: entry for entry in manifest.prefixes.values()}
    listed: dict[str, FileEntry] = {**manifest.files, **prefixes, **manifest.evidence}
    paths = {name: _inside(folder, name) for name in listed}
    wrong, hashed = [], 0
    for name, entry in sorted(listed.items(), key=lambda item: item[1].size_bytes):
        path = paths[name]
        if name in manifest.evidence and not check:
            continue
        if not path.is_file():
            wrong.append(f"{name} (missing)")
        elif path.stat().st_size != entry.size_bytes:
            wrong.append(f"{name} ({path.stat().st_size} bytes, not {entry.size_bytes})")
        elif check or (
            name not in prefixes and (hashed := hashed + entry.size_bytes) <= HASHED_BYTES
        ):
            if hash_file(path).sha256 != entry.sha256:
                wrong.append(f"{name} (other content)")
    if not wrong and not _consistent(folder, manifest):
        wrong.append(f"{MANIFEST_FILE} (it contradicts itself or {PROMPTS_FILE})")
    if wrong:
        raise DamagedError(
            f"expected the files that {MANIFEST_FILE} lists, found {', '.join(wrong)} in "
            f"{folder}; copy or export it again"
        )
    return Artifact(folder, manifest)


def _consistent(folder: Path, manifest: Manifest) -> bool:
    """Say whether what the manifest says twice, and sentence-transformers reads, agrees."""
    hashes = manifest.prompts.hashes()
    return (
        identity(manifest.files, manifest.spec, manifest.contract) == manifest.artifact_id
        and set(manifest.graphs.values()) <= set(manifest.files)
        and (told := read_prompts(folder)).fronts() == manifest.prompts.fronts()
        and told.default == manifest.prompts.default
        and all(hashes.get(name) == entry.prompt for name, entry in manifest.prefixes.items())
    )


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise MissingError(
            f"expected an artifact, found no {MANIFEST_FILE} in {folder}; name a folder that "
            "anna-export made"
        )
    found = read_json(path)
    version = found.get("schema_version")
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise DamagedError(
            f"expected manifest schema {SCHEMA_VERSION}, found {version} in {folder}; "
            + ("update anna-export" if version > SCHEMA_VERSION else "export it again")
        )
    try:
        return Manifest.model_validate_json(json.dumps(found))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedError(
            f"expected a manifest in {path}, found {place}: {first['msg']}; copy or export the "
            "artifact again"
        ) from None


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a listed file, which may not lead out of the folder."""
    if not is_inside(folder, name):
        raise DamagedError(f"expected files inside {folder}, found {name} leading out of it")
    return folder / name


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest in place, whole or not at all."""
    write_text(folder / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")


def add_evidence(
    artifact: Artifact,
    name: str,
    content: str | memoryview,
    prompts: Collection[str] | None = None,
) -> Artifact:
    """Write a piece of evidence about an artifact and list it in the manifest.

    A process killed in between leaves the artifact without that piece, and valid.

    Args:
        artifact: What it is about.
        name: Its file's name; folders in it are made.
        content: Its text or bytes.
        prompts: Names of those it is about; None for all.
    """
    hashes = artifact.manifest.prompts.hashes()
    covered = {one: hashes[one] for one in (hashes if prompts is None else prompts)}
    folder = artifact.folder
    # one writer at a time: by a file that is never replaced, as the folder's lock is the export's
    with locked(folder / TOKENIZER_FILE, wait=True):
        # another process may have added some since this one opened it
        manifest = _read_manifest(folder)
        others = {known: entry for known, entry in manifest.evidence.items() if known != name}
        if name in manifest.evidence:
            write_manifest(folder, manifest.model_copy(update={"evidence": others}))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            write_text(folder / name, content)
        else:
            write_bytes(folder / name, content)
        entry = Evidence(
            **hash_file(folder / name).model_dump(),
            covers=artifact.manifest.artifact_id,
            prompts=covered,
        )
        changed = manifest.model_copy(update={"evidence": {**others, name: entry}})
        write_manifest(folder, changed)
    return Artifact(folder, changed)


def read_evidence(artifact: Artifact, name: str) -> dict[str, Any] | None:
    """Read a JSON piece of evidence; None if there is none.

    Raises:
        DamagedError: If it is not what the manifest lists.
    """
    entry = artifact.manifest.evidence.get(name)
    if entry is None:
        return None
    path = artifact.folder / name
    if not path.is_file() or hash_file(path).sha256 != entry.sha256:
        raise DamagedError(
            f"expected the {name} that {MANIFEST_FILE} lists, found another or none in "
            f"{artifact.folder}; run anna-export verify"
        )
    return read_json(path)
