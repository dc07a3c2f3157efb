"""The manifest: what an artifact is made of, and the hash that is its identity."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from anna_export.errors import DamagedError, MissingError
from anna_export.files.atomic import write_text
from anna_export.files.hashing import file_sha256
from anna_export.files.hub_cache import hint_below
from anna_export.files.json_file import read_json
from anna_export.files.validation import validated
from anna_export.spec import EmbeddingSpec, Precision, Similarity
from anna_export.text.framing import CHOSEN, TOKENIZER_FILES, TokenFraming
from anna_export.text.prompts import Prompts
from anna_export.text.st_files import MODULES_FILE

MANIFEST_FILE = "manifest.json"
PARITY_FILE = "parity.json"
CARD_FILE = "README.md"
CALIBRATION_FILE = "calibration.json"
PREFIX_FOLDER: Final = "prefixes"
ENGINE_FOLDER: Final = "engines"
SCHEMA_VERSION: Final = 3


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
    further_adapters: list[str] = []  # merged after the first, in this order
    sha256: dict[str, str]

    @property
    def adapters(self) -> list[str]:
        """The folder names of all adapters, in the order they were merged in."""
        return [] if self.adapter is None else [self.adapter, *self.further_adapters]

    def is_of(self, hashes: Mapping[str, str]) -> bool:
        """Say whether these are the hashes of what it names."""
        if MODULES_FILE not in self.sha256:  # from before modules were read
            hashes = {
                name: digest
                for name, digest in hashes.items()
                if name != MODULES_FILE and "/" not in name
            }
        return self.sha256 == hashes


class Quantised(_Model):
    """How a quantised artifact came to its numbers; the rest is in calibration.json."""

    compute_dtype: Precision  # of what is not quantised
    calibration_sha256: str  # of the token ids calibrated on
    calibration_texts: int
    calibration_tokens: int
    unquantized: dict[str, str]  # linear input whose layers are not quantised → why
    max_loss: float | None  # what its proof is held to


class Manifest(_Model):
    """What manifest.json holds."""

    schema_version: Literal[3]
    artifact_id: str
    precision: Precision
    quantised: Quantised | None = None
    spec: EmbeddingSpec
    framing: TokenFraming
    framing_source: dict[str, str] = {}  # bos, eos or pad → what decided it
    prompts: Prompts
    given_prompts: list[str] = []  # names of those that are not the model folder's own
    similarity: Similarity = Similarity.COSINE
    prefixes: dict[str, StoredPrefix]  # by the prompt's name
    golden: list[Golden]
    graphs: dict[str, str]  # target → file
    files: dict[str, FileEntry]
    evidence: dict[str, Evidence]
    source: Source
    versions: dict[str, str]
    created: str

    @property
    def eos_chosen(self) -> bool:
        """Whether it was said at export if an end token follows a text: no file decided it."""
        return self.framing_source.get("eos") == CHOSEN


def identity(files: Mapping[str, FileEntry], spec: EmbeddingSpec, framing: TokenFraming) -> str:
    """Return the artifact_id: sha256 over the sorted hashes of what decides a vector."""
    deciding = (*TOKENIZER_FILES, CALIBRATION_FILE)
    names = [name for name in files if name in deciding or name.startswith("model.")]
    lines = [f"{name} {files[name].sha256}" for name in sorted(names)]
    lines.append(json.dumps([_deciding(spec), _deciding(framing)], sort_keys=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _deciding(value: EmbeddingSpec | TokenFraming) -> dict[str, Any]:
    """Return its fields but those at their default: an artifact from before them keeps its id."""
    defaults = {field.name: field.default for field in fields(value)}
    return {
        name: nested
        for name, nested in asdict(value).items()
        if getattr(value, name) != defaults[name]
    }


def hash_file(path: Path) -> FileEntry:
    """Return a file's sha256 and size."""
    return FileEntry(sha256=file_sha256(path), size_bytes=path.stat().st_size)


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        MissingError: If there is none.
        DamagedError: If it is not as expected, or of another schema.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise MissingError(
            f"expected an artifact, found no {MANIFEST_FILE} in {folder}; "
            f"{hint_below(folder, MANIFEST_FILE) or 'name a folder that anna-export made'}"
        )
    content = read_json(path)
    if content.get("schema_version") == 2:
        content = _from_schema_2(content)
    version = content.get("schema_version")
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise DamagedError(
            f"expected manifest schema {SCHEMA_VERSION}, found {version} in {folder}; "
            + ("update anna-export" if version > SCHEMA_VERSION else "export it again")
        )
    return validated(
        Manifest, content, path, error=DamagedError, remedy="copy or export the artifact again"
    )


def _from_schema_2(content: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest of the schema before this one by today's names; its identity stays."""
    names = {"contract": "framing", "arithmetic": "compute_dtype", "high_precision": "unquantized"}
    content = {names.get(name, name): value for name, value in content.items()}
    if isinstance(quantised := content.get("quantised"), dict):
        content["quantised"] = {
            names.get(name, name): value for name, value in quantised.items() if name != "ranges"
        }
    # it did not say which were given
    prompts = content.get("prompts")
    prompt_names = sorted(prompts.get("by_name", ())) if isinstance(prompts, dict) else []
    return content | {"schema_version": SCHEMA_VERSION, "given_prompts": prompt_names}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest in place, whole or not at all."""
    write_text(folder / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")
