"""A scheduler to test without a server: its encoder keeps batches, its clock is the test's."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from anna_export.serve.config import ServerConfig
from anna_export.serve.metrics import Metrics
from anna_export.serve.queue_item import QueueItem
from anna_export.serve.scheduler import Job, Scheduler
from anna_export.serve.worker import BatchResult, EncodeBatch, Outcome, Ready
from anna_export.text.batching import BatchLimits

# 128 tokens a batch at any rate below 1,280 tokens a second: at most 256 may be pending
RATE = 100.0
BATCH_TOKENS, MAX_PENDING = 128, 256


class Recorder:
    """An encoder that keeps what it is sent, until a test gives its results."""

    def __init__(self) -> None:
        self.batches: list[EncodeBatch] = []
        self.kills: list[str] = []

    def send(self, batch: EncodeBatch) -> None:
        self.batches.append(batch)

    def kill(self, reason: str) -> None:
        self.kills.append(reason)


class Queue:
    """A scheduler that is ready, its encoder and its metrics."""

    def __init__(self, rate: float = RATE, **config: Any) -> None:
        self.encoder, self.metrics = Recorder(), Metrics()
        self.scheduler = Scheduler(ServerConfig("small", **config), self.metrics, self.encoder)
        self.scheduler.on_ready(Ready("stub", "fp32", BatchLimits(), rate))

    def submit(self, *items: QueueItem) -> list[Job]:
        return self.scheduler.submit(items)

    def finish(
        self, batch: EncodeBatch, outcomes: Sequence[int] | None = None, seconds: float = 0.0
    ) -> None:
        """Answer a batch: each vector is its text's first token id."""
        vectors = np.array([[row[0]] for row in batch.rows], dtype=np.float32)
        results = np.array(outcomes or [Outcome.FINITE] * len(batch.rows), dtype=np.uint8)
        self.scheduler.on_result(BatchResult(batch.number, vectors, results, seconds))

    def finish_all(self) -> None:
        """Answer every batch, those too that are sent meanwhile."""
        number = 0
        while number < len(self.encoder.batches):
            self.finish(self.encoder.batches[number])
            number += 1

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def text(token: int, length: int = 1) -> QueueItem:
    return QueueItem((token,) * length)


def busy() -> Queue:
    """Return a queue whose encoder has as many batches as it takes, and room for one request."""
    queue = Queue()
    queue.submit(text(1, 120), text(2, 120))
    assert len(queue.encoder.batches) == 2 and not queue.scheduler.is_full
    return queue


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time only `advance` moves."""

    seconds = 0.0

    def time(self) -> float:
        return self.seconds

    async def advance(self, seconds: float) -> None:
        self.seconds += seconds
        for _ in range(2):  # what is due is called in the turn after it is found to be
            await asyncio.sleep(0)


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Return a test that runs on an event loop of its own, which it may take as `clock`."""

    def run() -> None:
        with asyncio.Runner(loop_factory=Clock) as runner:
            clock = [runner.get_loop()] if test.__code__.co_argcount else []
            runner.run(test(*clock))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run
