"""How an artifact or a baseline is opened, in the process in which it is timed."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from anna_export.errors import ExtraError, InputError, MissingError
from anna_export.text.prompts import Prompt
from anna_export.text.st_files import MODULES_FILE

_URL_SECONDS: Final = 600


class Embed(Protocol):
    """Texts of one prompt → (N, D) vectors."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors in order."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """An artifact or a baseline that is ready: what it is, what it computes in, what embeds."""

    name: str
    compute: str
    embed: Embed


@dataclass(frozen=True, slots=True)
class OpenArtifact:
    """An artifact through one of its backends."""

    folder: Path
    prompt: str | None
    backend: str
    device: str
    threads: int | None

    def __call__(self) -> Opened:
        """Load it."""
        from anna_export.backends import open_encoder

        encoder = open_encoder(
            self.folder, backend=self.backend, device=self.device, threads=self.threads
        )
        backend = encoder.backend
        return Opened(
            f"{self.folder.name} ({backend.name})",
            backend.compute_label,
            lambda texts: encoder.encode(texts, self.prompt),
        )


@dataclass(frozen=True, slots=True)
class OpenSentenceTransformer:
    """A model folder in sentence-transformers, in fp32; a plain one with its last token pooled."""

    folder: Path
    prompt: Prompt
    max_tokens: int
    device: str

    def __call__(self) -> Opened:
        """Load it."""
        from anna_export.reference.library import open_folder

        model = open_folder(self.folder, None if self.device == "auto" else self.device)
        tokenizer, end = model.tokenizer, ""
        # a folder of its own says itself what frames a text, and how long it may be
        if not (self.folder / MODULES_FILE).exists():
            model.max_seq_length = self.max_tokens
            adds_end = tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
            end = "" if adds_end else tokenizer.eos_token

        def embed(texts: Sequence[str]) -> np.ndarray:
            followed = [f"{text}{self.prompt.back}{end}" for text in texts]
            vectors = model.encode(
                followed,
                prompt=self.prompt.front,
                batch_size=len(texts),
                show_progress_bar=False,
            )
            return np.asarray(vectors)

        name = f"sentence-transformers {version('sentence-transformers')}"
        return Opened(name, f"fp32 on {model.device}", embed)


@dataclass(frozen=True, slots=True)
class OpenUrl:
    """A server that speaks OpenAI's or TEI's language."""

    url: str
    prompt: Prompt
    api_key: str | None = None

    def __call__(self) -> Opened:
        """Ask it who it is.

        Raises:
            MissingError: If nobody answers there, or in neither language.
        """
        try:
            import httpx
        except ImportError:
            raise ExtraError("expected httpx, found none; install anna-export[serve]") from None

        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        client = httpx.Client(base_url=self.url, timeout=_URL_SECONDS, headers=headers)
        models = self._get(client, "/v1/models")
        if models and models.get("data"):
            name = str(models["data"][0]["id"])
            embed = self._openai(client, name)
            return Opened(f"{name} at {self.url}", "as its server says", embed)
        info = self._get(client, "/info")
        if info is None:
            raise MissingError(
                f"expected /v1/models or /info at {self.url}, found neither; name the address of "
                "an OpenAI-compatible server or of text-embeddings-inference"
            )
        name = f"{info.get('model_id', 'a model')} at {self.url}"
        return Opened(name, str(info.get("model_dtype", "unknown type")), self._tei(client))

    def _get(self, client: Any, path: str) -> Any:
        """Return a route's JSON; None if the server answers, but has no such route."""
        import httpx

        try:
            response = client.get(path)
        except httpx.HTTPError as error:
            raise MissingError(
                f"expected a server at {self.url}, found: {error}; start it first"
            ) from None
        return response.json() if response.status_code == 200 else None

    def _openai(self, client: Any, model: str) -> Embed:
        def embed(texts: Sequence[str]) -> np.ndarray:
            body = {"model": model, "input": self._prompted(texts), "encoding_format": "float"}
            rows = _answer(client.post("/v1/embeddings", json=body))["data"]
            rows.sort(key=lambda row: row["index"])
            return np.array([row["embedding"] for row in rows], dtype=np.float32)

        return embed

    def _tei(self, client: Any) -> Embed:
        return lambda texts: np.array(
            _answer(client.post("/embed", json={"inputs": self._prompted(texts)}))
        )

    def _prompted(self, texts: Sequence[str]) -> list[str]:
        return [f"{self.prompt.front}{text}{self.prompt.back}" for text in texts]


def _answer(response: Any) -> Any:
    if response.status_code != 200:
        raise InputError(
            f"expected vectors from {response.url}, found status {response.status_code}: "
            f"{response.text[:200]}"
        )
    return response.json()
