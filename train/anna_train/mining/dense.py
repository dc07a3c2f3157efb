"""The encoder of the dense retriever: an artifact of ours, or a sentence-transformers folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from anna_export import open_encoder
from anna_export.errors import InputError
from anna_export.files.model_folders import require_folder
from anna_export.text.prompts import DOCUMENTS

ARTIFACT_FILE: Final = "manifest.json"
SENTENCE_TRANSFORMERS_FILE: Final = "modules.json"
# the prompt for queries where none is named, if the model has one of that name


class TextEncoder(Protocol):
    """Embeds queries and documents, each with its own prompt."""

    dim: int
    query_prompt: str
    document_prompt: str

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return (B, D) float32 rows of unit length."""
        ...

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        """Return (B, D) float32 rows of unit length."""
        ...


class _Artifact:
    """An artifact; its documents' prompt is the one it was exported with for its queries'."""

    def __init__(self, folder: Path, prompt: str | None) -> None:
        self._encoder = open_encoder(folder)
        self.dim = self._encoder.dim
        prompts = self._encoder.prompts
        self._name = prompts.queries() if prompt is None else prompt
        self._documents = prompts.documents.get(self._name, "")
        self.query_prompt = repr(prompts.find(self._name))
        self.document_prompt = repr(prompts.find(self._documents))

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._encoder.encode(texts, self._name)

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        return self._encoder.encode(texts, self._documents)


class _SentenceTransformer:
    """A sentence-transformers folder; nothing is downloaded."""

    def __init__(self, folder: Path, prompt: str | None) -> None:
        # torch and transformers take seconds to load, and LSA needs neither
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(folder), local_files_only=True)
        self.dim = len(self._model.encode(""))
        prompts = self._model.prompts
        if prompt and prompt not in prompts:
            names = ", ".join(sorted(prompts)) or "none"
            raise InputError(f"expected a known prompt ({names}), found {prompt!r}")
        self._prompt = prompt
        # encode_document alone would not take one that is named otherwise than document
        self._document = next((name for name in DOCUMENTS if prompts.get(name)), None)
        self.query_prompt = repr((prompt, prompts, self._model.default_prompt_name, "query"))
        self.document_prompt = repr((prompts, self._model.default_prompt_name, self._document))

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        if self._prompt is None:
            return self._model.encode_query(list(texts), normalize_embeddings=True)
        return self._model.encode(
            list(texts), prompt_name=self._prompt or None, normalize_embeddings=True
        )

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.encode_document(
            list(texts), prompt_name=self._document, normalize_embeddings=True
        )


def require_encoder(folder: Path) -> None:
    """Refuse what is neither kind of folder, before anything is loaded.

    Raises:
        MissingError: If there is no such folder.
        InputError: If it is neither.
    """
    require_folder(folder)
    if not any((folder / name).is_file() for name in (ARTIFACT_FILE, SENTENCE_TRANSFORMERS_FILE)):
        raise InputError(
            f"expected an artifact ({ARTIFACT_FILE}) or a sentence-transformers model "
            f"({SENTENCE_TRANSFORMERS_FILE}), found neither in {folder}"
        )


def open_text_encoder(folder: Path, prompt: str | None) -> TextEncoder:
    """Open either kind of folder.

    Args:
        folder: An artifact or a sentence-transformers model.
        prompt: Name of the queries' prompt; None: the one named "query" if there is one, else the
            model's default; "": none.

    Raises:
        AnnaError: If it is neither, damaged, or has no such prompt.
    """
    require_encoder(folder)
    kind = _Artifact if (folder / ARTIFACT_FILE).is_file() else _SentenceTransformer
    return kind(folder, prompt)
