"""The artifact: a folder with everything that embeds, a manifest that names it, and its evidence.

Identity (graphs, weights, tokenizer, spec) has one hash, `artifact_id`. Evidence (parity, card) is
listed beside it and names the identity it covers, so that adding some leaves the rest valid.
"""

from dataclasses import dataclass
from pathlib import Path

from anna_export.artifact.manifest import (
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    hash_file,
    identity,
    read_manifest,
)
from anna_export.errors import DamagedError, InputError
from anna_export.files.containment import stays_inside
from anna_export.text.prompts import PROMPTS_FILE, read_prompts
from anna_export.text.st_files import st_prompts
from anna_export.text.tokeniser import Tokeniser

# Loading hashes files up to this many bytes in all; larger ones by size, with check=True by hash.
HASHED_BYTES = 256 << 20


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
        tokeniser = Tokeniser.open(self.folder, self.manifest.framing)
        golden = self.manifest.golden
        for entry, ids in zip(golden, tokeniser.ids([g.text for g in golden]), strict=True):
            if ids != entry.ids:
                raise DamagedError(
                    f"expected the golden token ids of {entry.text[:40]!r}, found others; "
                    f"install tokenizers=={self.manifest.versions.get('tokenizers')}"
                )
        return tokeniser


def open_artifact(folder: Path, *, check: bool = False) -> Artifact:
    """Open an artifact and look for damage.

    Args:
        folder: Where it is.
        check: Hash every file, evidence too, instead of up to 256 MiB in all.

    Raises:
        MissingError: If it is no artifact.
        DamagedError: Naming each file that is missing or not what the manifest says.
    """
    manifest = read_manifest(folder)
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
        identity(manifest.files, manifest.spec, manifest.framing) == manifest.artifact_id
        and set(manifest.graphs.values()) <= set(manifest.files)
        # artifacts from before have no names beside the prompts' own
        and (read := read_prompts(folder)).fronts()
        in (manifest.prompts.fronts(), st_prompts(manifest.prompts))
        and read.default == manifest.prompts.default
        and all(hashes.get(name) == entry.prompt for name, entry in manifest.prefixes.items())
    )


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a listed file, whose name may not lead out of the folder.

    The file may be a link to anywhere, as in the hub's cache: its hash says what it must hold.
    """
    if not stays_inside(name):
        raise DamagedError(f"expected files inside {folder}, found {name} leading out of it")
    return folder / name
