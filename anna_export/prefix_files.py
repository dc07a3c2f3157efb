"""Prefixes written as files of an artifact: prefixes/<name>.safetensors, one a prompt."""

import hashlib
from collections.abc import Mapping
from typing import Final

import safetensors.torch
import torch

from anna_export.artifact import (
    PREFIX_FOLDER,
    Artifact,
    StoredPrefix,
    hash_file,
    write_manifest,
)
from anna_export.prompt_file import NAME
from anna_export.stored_prefixes import ARTIFACT_ID, KEYS, VALUES

_SAFE_CHARACTERS: Final = 16


def write_prefix(
    artifact: Artifact,
    name: str,
    ids: list[int],
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    exact: bool,
) -> StoredPrefix:
    """Write the prefix of a prompt, in the type of its tensors, and return what lists it.

    Args:
        artifact: What it is of; its manifest stays as it is.
        name: The prompt's.
        ids: The P token ids.
        keys: (L, K, P, head_dim).
        values: As the keys.
        exact: Whether the model that the artifact was made from computed them.
    """
    file = f"{PREFIX_FOLDER}/{_file_name(name)}.safetensors"
    path = artifact.folder / file
    path.parent.mkdir(exist_ok=True)
    tensors = {KEYS: keys.contiguous(), VALUES: values.contiguous()}
    metadata = {ARTIFACT_ID: artifact.manifest.artifact_id}
    # not by save_file, whose error says nothing of a full disk
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    return StoredPrefix(
        **hash_file(path).model_dump(),
        file=file,
        prompt=artifact.manifest.prompts.hashes()[name],
        ids=ids,
        exact=exact,
    )


def with_prefixes(artifact: Artifact, prefixes: Mapping[str, StoredPrefix]) -> Artifact:
    """List the prefixes that were written into an artifact's folder, and no others."""
    manifest = artifact.manifest.model_copy(update={"prefixes": dict(prefixes)})
    write_manifest(artifact.folder, manifest)
    return Artifact(artifact.folder, manifest)


def _file_name(name: str) -> str:
    """Return the name, or, where a sentence-transformers model has an odd one, its hash."""
    if NAME.fullmatch(name):
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:_SAFE_CHARACTERS]
