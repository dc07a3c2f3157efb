"""The queue in front of the encoder: which texts wait, which run, and whether more may come.

A text that several requests hold is computed once. The encoder never waits while there is work, and
the oldest text is always in the next batch.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np

from anna_export.serve.choose_batch import choose_batch
from anna_export.serve.config import ServerConfig
from anna_export.serve.metrics import Metrics
from anna_export.serve.queue_item import QueueItem
from anna_export.serve.refusal import Refusal
from anna_export.serve.worker import BatchResult, EncodeBatch, Outcome, Ready
from anna_export.text.batching import BatchLimits

# One batch is computed while the next one is on its way.
_MAX_RUNNING_BATCHES: Final = 2
# Where the encoder is slow, a batch lasts about this long, so that the next text waits no longer.
_BATCH_SECONDS: Final = 0.1
_MIN_BATCH_TOKENS: Final = 128
# A batch that takes so many times as long as its tokens usually do has stalled.
_STALL_FACTOR: Final = 20
# Weight of the newest batch in the moving average of tokens a second.
_RATE_WEIGHT: Final = 0.2


class BatchEncoder(Protocol):
    """What computes batches; results come back through `Scheduler.on_result`."""

    def send(self, batch: EncodeBatch) -> None:
        """Take a batch to compute."""
        ...

    def kill(self, reason: str) -> None:
        """End what is being computed; `Scheduler.on_lost` follows."""
        ...


@dataclass(eq=False, slots=True)
class Job:
    """A text that waits or runs, and how many requests want it."""

    item: QueueItem
    future: "asyncio.Future[np.ndarray]"
    waiters: int = 1
    queued: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    finished: float = 0.0


class Scheduler:
    """Admits texts, puts them in batches and gives their vectors to all who wait.

    Args:
        config: The limits.
        metrics: What is counted.
        encoder: Where batches go.
    """

    def __init__(self, config: ServerConfig, metrics: Metrics, encoder: BatchEncoder) -> None:
        self._config, self._metrics, self._encoder = config, metrics, encoder
        self._jobs: dict[QueueItem, Job] = {}
        self._waiting: dict[Job, None] = {}  # the oldest first
        self._running: dict[int, list[Job]] = {}  # by the batch's number, the oldest first
        self._batch_numbers = itertools.count()
        self._pending_tokens = 0
        self._tokens_per_second = 1.0
        self._encoder_limits = BatchLimits(0)
        self._stall_timer: asyncio.TimerHandle | None = None
        self.ready: Ready | None = None

    @property
    def pending_tokens(self) -> int:
        """Tokens that wait or are being computed."""
        return self._pending_tokens

    @property
    def max_pending_tokens(self) -> int:
        """How many tokens may be pending before requests are refused."""
        in_time = int(self._config.queue_seconds * self._tokens_per_second)
        return max(2 * self.batch_limits.tokens, in_time)

    @property
    def batch_limits(self) -> BatchLimits:
        """What one batch holds at most, at the encoder's present rate."""
        tokens = max(_MIN_BATCH_TOKENS, int(_BATCH_SECONDS * self._tokens_per_second))
        return replace(self._encoder_limits, tokens=min(self._encoder_limits.tokens, tokens))

    @property
    def is_full(self) -> bool:
        """Whether requests are refused."""
        return self._pending_tokens >= self.max_pending_tokens

    def submit(self, items: Sequence[QueueItem]) -> list[Job]:
        """Queue a request's texts; the caller calls `leave` for each job that is returned.

        Only what is pending decides, not how much the request adds to it: a request of many texts
        would otherwise wait for ever behind single ones.

        Raises:
            Refusal: If the encoder is not ready, or more is pending than it computes in time.
        """
        if self.ready is None:
            raise Refusal.unavailable("the model is not loaded yet, or is being loaded again", 5)
        if self.is_full:
            self._metrics.rejected.labels(reason="queue").inc()
            excess = self._pending_tokens - self.max_pending_tokens
            raise Refusal.overloaded(
                f"{self._pending_tokens:,} tokens are waiting, as many as the limit of "
                f"{self.max_pending_tokens:,} or more",
                math.ceil(excess / self._tokens_per_second),
            )
        jobs = [self._job(item) for item in items]
        self._schedule()
        return jobs

    def leave(self, job: Job) -> None:
        """Wait for a job no longer; a text that no request wants is not computed."""
        job.waiters -= 1
        if not job.waiters and job in self._waiting:
            del self._waiting[job]
            self._remove(job)
            job.future.cancel()

    def on_ready(self, ready: Ready) -> None:
        """Admit texts from now on."""
        self.ready = ready
        self._tokens_per_second = ready.tokens_per_second
        tokens = self._config.max_batch_tokens or ready.limits.tokens
        self._encoder_limits = replace(ready.limits, tokens=tokens)
        self._schedule()

    def on_lost(self) -> None:
        """Refuse all that waits or was being computed: its process is gone."""
        self.ready = None
        self._restart_stall_timer()
        jobs = [*self._waiting, *itertools.chain.from_iterable(self._running.values())]
        self._waiting.clear()
        self._running.clear()
        for job in jobs:
            self._remove(job)
            _fail(job, Refusal.unavailable("the process that computed this text died", 5))

    def on_result(self, result: BatchResult) -> None:
        """Give each job of a batch its vector, and send the next batch."""
        finished = time.perf_counter()
        jobs = self._running.pop(result.number, None)
        if jobs is None:
            return
        self._restart_stall_timer()
        self._metrics.inference.observe(result.seconds)
        tokens = _computed_tokens(jobs)
        if result.seconds > 0 and tokens >= _MIN_BATCH_TOKENS // 2:
            rate = tokens / result.seconds
            self._tokens_per_second += _RATE_WEIGHT * (rate - self._tokens_per_second)
        for job, vector, outcome in zip(jobs, result.vectors, result.outcomes, strict=True):
            self._remove(job)
            job.finished = finished
            if outcome != Outcome.FINITE:
                self._metrics.nonfinite.labels(outcome=Outcome(outcome).name.lower()).inc()
            if outcome == Outcome.LOST:
                _fail(job, Refusal.lost())
            elif not job.future.done():
                job.future.set_result(vector)
        self._schedule()

    def _job(self, item: QueueItem) -> Job:
        """Return the job of an equal text that waits or runs, or a new one."""
        job = self._jobs.get(item)
        if job is not None:
            job.waiters += 1
            return job
        job = Job(item, asyncio.get_running_loop().create_future())
        self._jobs[item] = job
        self._waiting[job] = None
        self._pending_tokens += len(item.ids)
        return job

    def _remove(self, job: Job) -> None:
        self._pending_tokens -= len(job.item.ids)
        del self._jobs[job.item]

    def _schedule(self) -> None:
        """Send batches until as many run as may."""
        while self.ready and self._waiting and len(self._running) < _MAX_RUNNING_BATCHES:
            oldest = next(iter(self._waiting)).item
            prefix = oldest.prompt, oldest.cached_tokens
            # a batch has one prefix, or none
            candidates = [
                job for job in self._waiting if (job.item.prompt, job.item.cached_tokens) == prefix
            ]
            lengths = [len(job.item.ids) for job in candidates]
            chosen = choose_batch(lengths, self.batch_limits, oldest.cached_tokens)
            self._run([candidates[index] for index in chosen])
        self._metrics.queue_depth.set(len(self._waiting))

    def _run(self, jobs: list[Job]) -> None:
        """Send these jobs to the encoder as one batch."""
        started = time.perf_counter()
        for job in jobs:
            del self._waiting[job]
            job.started = started
            self._metrics.queue.observe(started - job.queued)
            self._metrics.prefix_saved.inc(job.item.cached_tokens)
        self._metrics.batch_size.observe(len(jobs))
        self._metrics.batch_tokens.observe(_computed_tokens(jobs))
        number = next(self._batch_numbers)
        self._running[number] = jobs
        item = jobs[0].item
        rows = [list(job.item.ids) for job in jobs]
        counts = [job.item.prompt_tokens for job in jobs]
        self._encoder.send(EncodeBatch(number, rows, item.prompt, item.cached_tokens, counts))
        if len(self._running) == 1:
            self._restart_stall_timer()

    def _restart_stall_timer(self) -> None:
        """Have the encoder killed, and so started again, if its present batch never comes back."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if self.ready is None or not self._running:
            return
        usual = _computed_tokens(next(iter(self._running.values()))) / self._tokens_per_second
        seconds = max(self._config.stall_seconds, _STALL_FACTOR * usual)
        self._stall_timer = asyncio.get_running_loop().call_later(
            seconds, self._encoder.kill, f"no batch for {seconds:.0f} s"
        )


def _computed_tokens(jobs: Sequence[Job]) -> int:
    return sum(len(job.item.ids) for job in jobs)


def _fail(job: Job, refusal: Refusal) -> None:
    if not job.future.done():
        job.future.set_exception(refusal)
        job.future.exception()  # or asyncio complains of it if no request waits for the job
