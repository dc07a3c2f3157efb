"""What is timed: an artifact, and what it is held against. Each runs in a process of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from anna_export.errors import ExtraError, InputError, MissingError
from anna_export.text.prompts import Prompt

_URL_SECONDS: Final = 600


class Embed(Protocol):
    """Texts of one prompt → (N, D) vectors."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors in order."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A contender that is ready: what it is, and what embeds."""

    name: str
    arithmetic: str
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
    """A model folder in sentence-transformers, in fp32 with its last token pooled."""

    folder: Path
    prompt: Prompt
    max_tokens: int
    device: str

    def __call__(self) -> Opened:
        """Load it."""
        try:
            import sentence_transformers
            from sentence_transformers import models
        except ImportError:
            raise ExtraError(
                "expected sentence-transformers, found none; install anna-export[train]"
            ) from None
        if (self.folder / "modules.json").exists():
            model = sentence_transformers.SentenceTransformer(
                str(self.folder), device=None if self.device == "auto" else self.device
            )
        else:
            transformer = models.Transformer(str(self.folder), max_seq_length=self.max_tokens)
            transformer.tokenizer.padding_side = "right"
            width = transformer.get_embedding_dimension()
            pooling = models.Pooling(width, pooling_mode="lasttoken")
            model = sentence_transformers.SentenceTransformer(
                modules=[transformer, pooling, models.Normalize()],
                device=None if self.device == "auto" else self.device,
            )
        front = self.prompt.front
        tokenizer = model.tokenizer
        adds_end = tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
        end = "" if adds_end else tokenizer.eos_token

        def embed(texts: Sequence[str]) -> np.ndarray:
            whole = [f"{front}{text}{self.prompt.back}{end}" for text in texts]
            return np.asarray(model.encode(whole, batch_size=len(whole), show_progress_bar=False))

        version = sentence_transformers.__version__
        return Opened(f"sentence-transformers {version}", f"fp32 on {model.device}", embed)


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

        def get(path: str) -> Any:
            try:
                answer = client.get(path)
            except httpx.HTTPError as error:
                raise MissingError(
                    f"expected a server at {self.url}, found: {error}; start it first"
                ) from None
            return answer.json() if answer.status_code == 200 else None

        def around(texts: Sequence[str]) -> list[str]:
            return [f"{self.prompt.front}{text}{self.prompt.back}" for text in texts]

        def openai(name: str) -> Embed:
            def embed(texts: Sequence[str]) -> np.ndarray:
                body = {"model": name, "input": around(texts), "encoding_format": "float"}
                data = _answer(client.post("/v1/embeddings", json=body))["data"]
                data.sort(key=lambda one: one["index"])
                return np.array([one["embedding"] for one in data], dtype=np.float32)

            return embed

        def tei(texts: Sequence[str]) -> np.ndarray:
            return np.array(_answer(client.post("/embed", json={"inputs": around(texts)})))

        found = get("/v1/models")
        if found and found.get("data"):
            name = str(found["data"][0]["id"])
            return Opened(f"{name} at {self.url}", "as its server says", openai(name))
        told = get("/info")
        if told is None:
            raise MissingError(
                f"expected /v1/models or /info at {self.url}, found neither; name the address of "
                "an OpenAI-compatible server or of text-embeddings-inference"
            )
        kind = str(told.get("model_dtype", "unknown type"))
        return Opened(f"{told.get('model_id', 'a model')} at {self.url}", kind, tei)


def _answer(response: Any) -> Any:
    if response.status_code != 200:
        raise InputError(
            f"expected vectors from {response.url}, found status {response.status_code}: "
            f"{response.text[:200]}"
        )
    return response.json()
