"""One model being served: requests to vectors, and whether requests are taken."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from anna_export.artifact.evidence import read_evidence
from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import PARITY_FILE
from anna_export.serve.config import ServerConfig
from anna_export.serve.metrics import Metrics
from anna_export.serve.process import EncoderProcess
from anna_export.serve.refusal import Refusal
from anna_export.serve.request_tokeniser import RequestTokeniser, TokenisedTexts
from anna_export.serve.scheduler import Job, Scheduler
from anna_export.serve.schema import EmbedRequest, TokenizeRequest
from anna_export.serve.vector_formats import convert_vectors
from anna_export.serve.worker import BatchResult, LoadedModel, Ready

_TOKENISER_THREADS = 2
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Answer:
    """A request's vectors, in order, whether of unit length, and how long each part took, in s."""

    vectors: np.ndarray
    normalized: bool
    texts: TokenisedTexts
    tokenize_seconds: float
    queue_seconds: float
    inference_seconds: float


class EmbeddingService:
    """A model that is served.

    Args:
        artifact: The model.
        config: The server's limits.
        load_model: Loads it in the process that computes.
        on_unusable: Called with the reason why it cannot be served.
    """

    def __init__(
        self,
        artifact: Artifact,
        config: ServerConfig,
        load_model: Callable[[], LoadedModel],
        on_unusable: Callable[[str], None],
    ) -> None:
        self.artifact, self.config = artifact, config
        self.metrics = Metrics()
        self.process = EncoderProcess(
            load_model,
            on_ready=self._on_ready,
            on_result=self._on_result,
            on_lost=self._on_lost,
            on_unusable=on_unusable,
        )
        self.scheduler = Scheduler(config, self.metrics, self.process)
        self.loaded = asyncio.Event()  # once; a process that dies is not waited for again
        self.draining = False
        self.active = 0  # requests that are being answered
        self.body_bytes = 0  # of all of these
        self._tokeniser = RequestTokeniser(artifact, config)
        self._threads = ThreadPoolExecutor(_TOKENISER_THREADS, "tokenise")

    @property
    def normalizes(self) -> bool:
        """Whether vectors have unit length whatever a request says: it is the model's own step."""
        return self.artifact.manifest.spec.head.normalize

    @property
    def parity(self) -> str | None:
        """The verdict in the artifact's parity.json; None if it has none of these weights."""
        report = read_evidence(self.artifact, PARITY_FILE)
        entry = self.artifact.manifest.evidence.get(PARITY_FILE)
        if report is None or entry is None or entry.covers != self.artifact.manifest.artifact_id:
            return None
        return str(report.get("verdict"))

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken now."""
        return self.scheduler.ready is not None and not self.draining and not self.scheduler.is_full

    async def embed(self, request: EmbedRequest, deadline: float | None) -> Answer:
        """Return the vectors of a request's texts.

        Args:
            request: Texts or token ids, prompt, dimensions, type.
            deadline: `time.perf_counter` when the client stops waiting; None for never.

        Raises:
            Refusal: If they are wrong, too many, too late, or nothing can be computed.
        """
        if self.draining:
            raise Refusal.unavailable("the server is stopping", 5)
        started = time.perf_counter()
        texts = await self._in_thread(lambda: self._tokeniser.read(request))
        tokenised = time.perf_counter()
        self.metrics.tokenize.observe(tokenised - started)
        if deadline is not None and tokenised >= deadline:
            raise Refusal.expired()
        jobs = self.scheduler.submit(texts.items)
        try:
            async with asyncio.timeout(None if deadline is None else deadline - tokenised):
                vectors = np.stack(await _vectors(jobs, request.texts_field))
        except TimeoutError:
            self.metrics.rejected.labels(reason="deadline").inc()
            raise Refusal.expired() from None
        finally:
            for job in jobs:
                self.scheduler.leave(job)
        return Answer(
            *self._converted(vectors, request),
            texts,
            tokenised - started,
            max(max(0.0, job.started - tokenised) for job in jobs),
            max(job.finished - job.started for job in jobs),
        )

    def _converted(self, vectors: np.ndarray, request: EmbedRequest) -> tuple[np.ndarray, bool]:
        """Return vectors as a request asks for them, and whether these have unit length."""
        normalized = request.normalizes(self.normalizes)
        shortens = (request.dimensions or vectors.shape[1]) < vectors.shape[1]
        normalize = normalized and (shortens or not self.normalizes)
        dimensions, dtype = request.dimensions, request.embed_dtype
        return convert_vectors(vectors, dimensions, dtype, normalize=normalize), normalized

    async def tokens(self, request: TokenizeRequest) -> list[list[dict[str, Any]]]:
        """Return the tokens of a request's texts.

        Raises:
            Refusal: If there are too many texts, or no such prompt.
        """
        return await self._in_thread(lambda: self._tokeniser.tokens(request))

    def close(self) -> None:
        """End the process that computes; what waits for it is refused."""
        self.process.stop()
        self.scheduler.on_lost()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, call: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _on_ready(self, ready: Ready) -> None:
        self.scheduler.on_ready(ready)
        self.metrics.ready.set(1)
        self.loaded.set()

    def _on_result(self, result: BatchResult) -> None:
        self.scheduler.on_result(result)

    def _on_lost(self) -> None:
        self.metrics.ready.set(0)
        self.metrics.restarts.set(self.process.restarts)
        self.scheduler.on_lost()


async def _vectors(jobs: list[Job], field: str) -> list[np.ndarray]:
    """Wait for every job and return the vectors; a refusal names its text.

    Raises:
        Refusal: If a text has no vector.
    """
    await asyncio.wait([job.future for job in jobs])
    vectors = []
    for index, job in enumerate(jobs):
        try:
            vectors.append(job.future.result())
        except Refusal as refusal:
            # a copy: several requests may share the job
            raise replace(refusal, param=f"{field}.{index}") from None
    return vectors
