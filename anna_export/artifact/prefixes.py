"""Stored prefixes: the keys and values of baked prompts, written and read."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import ml_dtypes
import numpy as np
import safetensors

from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import PREFIX_FOLDER, StoredPrefix, hash_file, write_manifest
from anna_export.errors import DamagedError
from anna_export.files.atomic import make_parents, write_bytes
from anna_export.text.prefix import Prefix
from anna_export.text.prompt_file import NAME
from anna_export.text.prompts import Prompt

if TYPE_CHECKING:
    import torch

# tensors of a prefix's file, and what of its header says which artifact it was made for
KEYS: Final = "keys"
VALUES: Final = "values"
ARTIFACT_ID: Final = "artifact_id"
_DTYPES: Final = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class StoredPrefixes:
    """An artifact's prefixes; each is read when it is first used, and then stays in memory."""

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        self._artifact = artifact
        # of two names of one prompt, one
        self._entries: Mapping[Prompt, StoredPrefix] = {
            manifest.prompts.by_name[name]: entry for name, entry in manifest.prefixes.items()
        }
        self._loaded: dict[Prompt, Prefix] = {}
        self.ids: Mapping[Prompt, list[int]] = {
            prompt: entry.ids for prompt, entry in self._entries.items()
        }

    def load(self, prompt: Prompt) -> Prefix:
        """Return the prefix of a prompt that has one.

        Raises:
            DamagedError: If its file is damaged, or was made for another model or tokenizer.
        """
        if prompt not in self._loaded:
            self._loaded[prompt] = _read(self._artifact, self._entries[prompt])
        return self._loaded[prompt]


def _read(artifact: Artifact, entry: StoredPrefix) -> Prefix:
    path, spec = artifact.folder / entry.file, artifact.manifest.spec
    if not path.is_file() or hash_file(path).sha256 != entry.sha256:
        raise DamagedError(_what_is_wrong(artifact, path))
    tensors = dict(safetensors.deserialize(path.read_bytes()))
    shape = (spec.layers, spec.kv_heads, len(entry.ids), spec.head_dim)
    keys, values = (
        np.frombuffer(tensors[name]["data"], dtype=_DTYPES[tensors[name]["dtype"]])
        .astype(np.float32)
        .reshape(shape)
        for name in (KEYS, VALUES)
    )
    return Prefix(tuple(entry.ids), keys, values)


def _what_is_wrong(artifact: Artifact, path: Path) -> str:
    expected = f"expected the {path.name} of {artifact.folder}, found"
    remedy = "bake it again with anna-export prompts add, and `overwrite`"
    try:
        with safetensors.safe_open(path, "np") as file:
            made_for = (file.metadata() or {}).get(ARTIFACT_ID)
    except (OSError, safetensors.SafetensorError):
        made_for = artifact.manifest.artifact_id
    if made_for != artifact.manifest.artifact_id:
        return f"{expected} one made for another model or tokenizer (artifact {made_for}); {remedy}"
    return f"{expected} another or none; {remedy}"


_SAFE_CHARACTERS: Final = 16


def write_prefix(
    artifact: Artifact,
    name: str,
    ids: list[int],
    keys: "torch.Tensor",
    values: "torch.Tensor",
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
    # only who bakes waits for PyTorch: serving an engine needs none
    import safetensors.torch

    file = f"{PREFIX_FOLDER}/{_file_name(name)}.safetensors"
    path = artifact.folder / file
    make_parents(artifact.folder, file)
    tensors = {KEYS: keys.contiguous(), VALUES: values.contiguous()}
    metadata = {ARTIFACT_ID: artifact.manifest.artifact_id}
    # not by save_file, whose error says nothing of a full disk
    write_bytes(path, safetensors.torch.save(tensors, metadata))
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
