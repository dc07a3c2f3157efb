"""A service without a server or a process that computes: requests in, a test's own vectors out."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from anna_export.artifact.folder import Artifact
from anna_export.serve.app import build_app
from anna_export.serve.config import ServerConfig
from anna_export.serve.load_model import ModelLoader
from anna_export.serve.service import EmbeddingService
from anna_export.serve.worker import BatchResult, EncodeBatch, Outcome, Ready
from anna_export.text.batching import BatchLimits


@contextmanager
def serving(artifact: Artifact, **config: Any) -> Iterator[EmbeddingService]:
    """Open a service whose model is not loaded."""
    loader = ModelLoader(artifact.folder)
    with closing(
        EmbeddingService(artifact, ServerConfig("small", **config), loader, print)
    ) as service:
        yield service


def load(
    service: EmbeddingService,
    monkeypatch: pytest.MonkeyPatch,
    vector_of: Callable[[list[int]], np.ndarray],
) -> None:
    """Have a service answer with a function's vectors of token ids."""

    def answer(batch: EncodeBatch) -> None:
        vectors = np.stack([vector_of(row) for row in batch.rows])
        outcomes = np.full(len(vectors), Outcome.FINITE, dtype=np.uint8)
        result = BatchResult(batch.number, vectors, outcomes, 0.001)
        asyncio.get_running_loop().call_soon(service.scheduler.on_result, result)

    monkeypatch.setattr(service.process, "send", answer)

    async def ready() -> None:
        service.scheduler.on_ready(Ready("stub", "fp32", BatchLimits(), 1e6))

    asyncio.run(ready())


def send(service: EmbeddingService, method: str, path: str, **options: Any) -> httpx.Response:
    """Return the answer to one request; a fault of the service is answered 500."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(build_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())
