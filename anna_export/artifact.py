"""The artifact: a folder with everything that embeds, a manifest that names it, and its evidence.

Identity (graphs, weights, tokenizer, spec) has one hash, `artifact_id`. Evidence (parity, card) is
listed beside it and names the identity it covers, so that adding some leaves the rest valid.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from anna_export.errors import DamagedError, ExistsError, InputError, MissingError
from anna_export.prompts import Prompts
from anna_export.spec import EmbeddingSpec, Precision
from anna_export.streaming import out_of_space
from anna_export.tokenise import TOKENIZER_FILES, TokenContract, Tokeniser

MANIFEST_FILE = "manifest.json"
PARITY_FILE = "parity.json"
CARD_FILE = "README.md"
SCHEMA_VERSION: Final = 1
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


class Golden(_Model):
    """A text and the token ids it must become."""

    text: str
    ids: list[int]


class Source(_Model):
    """Where the weights came from: folder names and the sha256 of identifying files."""

    model: str
    adapter: str | None
    sha256: dict[str, str]


class Manifest(_Model):
    """What manifest.json holds."""

    schema_version: Literal[1]
    artifact_id: str
    precision: Precision
    spec: EmbeddingSpec
    contract: TokenContract
    prompts: Prompts
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
        return sum(entry.size_bytes for entry in self.manifest.files.values())

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
    names = [name for name in files if name in TOKENIZER_FILES or name.startswith("model.")]
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
        MissingError: If it is no artifact, or lacks a file.
        DamagedError: Naming each file that is not what the manifest says.
    """
    manifest = _read_manifest(folder)
    entries: dict[str, FileEntry] = dict(manifest.files)
    if check:
        entries |= manifest.evidence
    wrong, hashed = [], 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].size_bytes):
        path = _inside(folder, name)
        if not path.is_file():
            raise MissingError(f"expected the file {name} in {folder}, found none; export again")
        if path.stat().st_size != entry.size_bytes:
            wrong.append(f"{name} ({path.stat().st_size} bytes, not {entry.size_bytes})")
        elif check or (hashed := hashed + entry.size_bytes) <= HASHED_BYTES:
            if hash_file(path).sha256 != entry.sha256:
                wrong.append(f"{name} (other content)")
    if not wrong and identity(manifest.files, manifest.spec, manifest.contract) != (
        manifest.artifact_id
    ):
        wrong.append(f"{MANIFEST_FILE} (artifact_id)")
    if wrong:
        raise DamagedError(
            f"expected the files that {MANIFEST_FILE} lists, found {', '.join(wrong)} damaged in "
            f"{folder}; copy or export it again"
        )
    return Artifact(folder, manifest)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise MissingError(f"expected an artifact, found no {MANIFEST_FILE} in {folder}")
    try:
        text = path.read_text(encoding="utf-8")
        version = json.loads(text).get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise DamagedError(
                f"expected manifest schema {SCHEMA_VERSION}, found {version} in {folder}; "
                "update anna-export"
            )
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedError(
            f"expected a manifest in {path}, found {place}: {first['msg']}"
        ) from None
    except (AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedError(f"expected a manifest in {path}, found {error}") from None


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a listed file, which may not lead out of the folder."""
    pure, path = PurePosixPath(name), folder / name
    if (
        pure.is_absolute()
        or ".." in pure.parts
        or not path.resolve().is_relative_to(folder.resolve())
    ):
        raise DamagedError(f"expected files inside {folder}, found {name} leading out of it")
    return path


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest in place, whole or not at all."""
    write_text(folder / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")


def write_text(path: Path, text: str) -> FileEntry:
    """Put a text file in place, whole or not at all."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise out_of_space(error, path) from None
    return hash_file(path)


def add_evidence(artifact: Artifact, name: str, text: str) -> Artifact:
    """Write a piece of evidence about an artifact and list it in the manifest."""
    manifest = artifact.manifest
    entry = Evidence(
        **write_text(artifact.folder / name, text).model_dump(),
        covers=manifest.artifact_id,
        prompts=manifest.prompts.hashes(),
    )
    evidence = {**manifest.evidence, name: entry}
    changed = manifest.model_copy(update={"evidence": evidence})
    write_manifest(artifact.folder, changed)
    return Artifact(artifact.folder, changed)


def add_parity(artifact: Artifact, parity: Mapping[str, object]) -> Artifact:
    """Write parity.json."""
    return add_evidence(artifact, PARITY_FILE, json.dumps(parity, indent=2) + "\n")


@contextmanager
def staged(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder beside `out` to fill, which becomes `out` if nothing fails.

    A process killed in between leaves no `out`; what it left aside is removed by the next one.

    Raises:
        ExistsError: If `out` exists and is not to be overwritten.
    """
    require_absent(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    aside = out.with_name(f".{out.name}.partial-{os.getpid()}")
    aside.mkdir()
    try:
        yield aside
        _sync_folder(aside)
        replace_folder(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def require_absent(out: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, unless it may be overwritten.

    Raises:
        ExistsError: If it exists and `overwrite` is off, or it is not a folder.
    """
    if out.exists() and not out.is_dir():
        raise ExistsError(f"expected {out} to be free or a folder, found a file")
    if out.exists() and not overwrite:
        raise ExistsError(f"expected {out} to be free, found it there; --overwrite replaces it")


def require_absent_file(out: Path, *, overwrite: bool) -> None:
    """Refuse an output file that exists, unless it may be overwritten, or has no folder.

    Raises:
        ExistsError: If it exists and `overwrite` is off, or it is a folder.
        MissingError: If the folder it goes to does not exist.
    """
    if out.is_dir() or (out.exists() and not overwrite):
        raise ExistsError(f"expected {out} to be free, found it there; --overwrite replaces a file")
    if not out.parent.is_dir():
        raise MissingError(f"expected the folder {out.parent} for {out.name}, found none")


def replace_folder(source: Path, out: Path) -> None:
    """Rename `source` to `out`; what was there goes once the new one stands."""
    if not out.exists():
        source.rename(out)
    else:
        old = out.with_name(f".{out.name}.replaced-{os.getpid()}")
        out.rename(old)
        source.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    _sync_folder(out.parent)


def _remove_leftovers(out: Path) -> None:
    for kind in ("partial", "replaced"):
        for path in out.parent.glob(f".{out.name}.{kind}-*"):
            pid = path.name.rpartition("-")[2]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(path, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
