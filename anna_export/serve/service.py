"""One model being served: from what was asked to vectors, and whether it may be asked."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from anna_export.artifact.evidence import read_evidence
from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import PARITY_FILE
from anna_export.serve.inputs import Given, Read, Reader
from anna_export.serve.metrics import Metrics
from anna_export.serve.process import EncoderProcess
from anna_export.serve.refusal import Refusal
from anna_export.serve.scheduler import Job, Scheduler
from anna_export.serve.schema import Prompted, TokenizeRequest
from anna_export.serve.settings import Settings
from anna_export.serve.vectors import written
from anna_export.serve.worker import Ready, Served

_TOKENISER_THREADS = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """A request's vectors, in order, and how long each part took, in seconds."""

    vectors: np.ndarray
    read: Read
    tokenize_seconds: float
    queue_seconds: float
    inference_seconds: float


class Service:
    """A model.

    Args:
        artifact: It.
        settings: The server's limits.
        open_served: What loads it in the process that computes.
        on_unusable: Told why it cannot be served.
    """

    def __init__(
        self,
        artifact: Artifact,
        settings: Settings,
        open_served: Callable[[], Served],
        on_unusable: Callable[[str], None],
    ) -> None:
        self.artifact, self.settings = artifact, settings
        self.metrics = Metrics()
        self.reader = Reader(artifact, settings)
        self.scheduler = Scheduler(settings, self.metrics)
        self.process = EncoderProcess(
            open_served,
            on_ready=self._on_ready,
            on_done=self.scheduler.on_done,
            on_lost=self._on_lost,
            on_unusable=on_unusable,
        )
        self.scheduler.attach(self.process)
        self.draining = False
        self.active = 0  # requests that are being answered
        self.body_bytes = 0  # of all of these
        self._threads = ThreadPoolExecutor(_TOKENISER_THREADS, "tokenise")

    @property
    def parity(self) -> str | None:
        """The verdict in the artifact's parity.json; None if it has none that holds."""
        found = read_evidence(self.artifact, PARITY_FILE)
        entry = self.artifact.manifest.evidence.get(PARITY_FILE)
        if found is None or entry is None or entry.covers != self.artifact.manifest.artifact_id:
            return None
        return str(found.get("verdict"))

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken now."""
        return self.scheduler.ready is not None and not self.draining and not self.scheduler.is_full

    async def embed(
        self, given: Given, asked: Prompted, *, truncate: bool, field: str, deadline: float | None
    ) -> Answer:
        """Return the vectors of a request's texts.

        Args:
            given: A text, texts, or token ids.
            asked: Prompt, dimensions, type.
            truncate: Cut what is too long.
            field: What the body calls the texts.
            deadline: `time.perf_counter` of when the client wants them no more; None for never.

        Raises:
            Refusal: If they are wrong, too many, too late, or nobody is there to compute them.
        """
        if self.draining:
            raise Refusal.unavailable("the server is stopping", 5)
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        read = await loop.run_in_executor(
            self._threads, lambda: self.reader.read(given, asked, truncate=truncate, field=field)
        )
        tokenised = time.perf_counter()
        self.metrics.tokenize.observe(tokenised - started)
        if deadline is not None and tokenised >= deadline:
            raise Refusal.expired()
        jobs = self.scheduler.submit(read.items)
        try:
            async with asyncio.timeout(None if deadline is None else deadline - tokenised):
                rows = await _all(jobs, field)
        except TimeoutError:
            self.metrics.rejected.labels(reason="deadline").inc()
            raise Refusal.expired() from None
        finally:
            for job in jobs:
                self.scheduler.leave(job)
        vectors = np.stack(rows)
        return Answer(
            written(vectors, asked.dimensions, asked.embed_dtype),
            read,
            tokenised - started,
            max(max(0.0, job.started - tokenised) for job in jobs),
            max(job.finished - job.started for job in jobs),
        )

    async def tokens(self, asked: TokenizeRequest) -> list[list[dict[str, Any]]]:
        """Return the tokens of a request's texts.

        Raises:
            Refusal: If there are too many texts, or no such prompt.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.reader.tokens, asked)

    def close(self) -> None:
        """End the process that computes; what waits for it is refused."""
        self.process.stop()
        self.scheduler.on_lost()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _on_ready(self, ready: Ready) -> None:
        self.scheduler.on_ready(ready)
        self.metrics.ready.set(1)

    def _on_lost(self) -> None:
        self.metrics.ready.set(0)
        self.metrics.restarts.set(self.process.restarts)
        self.scheduler.on_lost()


async def _all(jobs: list[Job], field: str) -> list[np.ndarray]:
    """Wait for every job; a text that has no vector is named."""
    await asyncio.wait([job.future for job in jobs])
    rows = []
    for place, job in enumerate(jobs):
        try:
            rows.append(job.future.result())
        except Refusal as refusal:
            # several requests may hold the same one
            raise Refusal(
                refusal.kind, refusal.message, refusal.code, f"{field}.{place}", refusal.headers
            ) from None
    return rows
