"""Evidence about an artifact (parity, bench, engines, card): added, listed and read."""

from collections.abc import Collection
from typing import Any

from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import (
    MANIFEST_FILE,
    Evidence,
    hash_file,
    read_manifest,
    write_manifest,
)
from anna_export.errors import DamagedError
from anna_export.files.atomic import make_parents, write_bytes, write_text
from anna_export.files.json_file import read_json
from anna_export.files.locks import locked
from anna_export.text.framing import TOKENIZER_FILE


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
        name: Its file's name; folders in it are made. A link of that name becomes a file: what it
            leads to stays.
        content: Its text or bytes.
        prompts: Names of those it is about; None for all.
    """
    hashes = artifact.manifest.prompts.hashes()
    covered = {prompt: hashes[prompt] for prompt in (hashes if prompts is None else prompts)}
    folder = artifact.folder
    # one writer at a time: by a file that is never replaced, as the folder's lock is the export's
    with locked(folder / TOKENIZER_FILE, wait=True):
        # another process may have added some since this one opened it
        manifest = read_manifest(folder)
        others = {file: entry for file, entry in manifest.evidence.items() if file != name}
        if name in manifest.evidence:
            write_manifest(folder, manifest.model_copy(update={"evidence": others}))
        make_parents(folder, name)
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
