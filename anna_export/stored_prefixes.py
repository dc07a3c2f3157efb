"""An artifact's prefixes, read without PyTorch, which a runtime needs not have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import ml_dtypes
import numpy as np
import safetensors

from anna_export.artifact import Artifact, StoredPrefix, hash_file
from anna_export.errors import DamagedError
from anna_export.prefix import Prefix
from anna_export.prompts import Prompt

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
    remedy = "bake it again with anna-export prompts add ARTIFACT FILE --overwrite"
    try:
        with safetensors.safe_open(path, "np") as file:
            made_for = (file.metadata() or {}).get(ARTIFACT_ID)
    except (OSError, safetensors.SafetensorError):
        made_for = artifact.manifest.artifact_id
    if made_for != artifact.manifest.artifact_id:
        return f"{expected} one made for another model or tokenizer (artifact {made_for}); {remedy}"
    return f"{expected} another or none; {remedy}"
