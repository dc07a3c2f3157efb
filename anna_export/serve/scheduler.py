"""What waits, what is computed, and what may still come: the queue in front of the encoder.

A text that several requests hold is computed once. The encoder never waits while there is work, and
the oldest text is always in the next batch.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from anna_export.serve.batch import choose_batch
from anna_export.serve.metrics import Metrics
from anna_export.serve.process import EncoderProcess
from anna_export.serve.refusal import Refusal
from anna_export.serve.settings import Settings
from anna_export.serve.worker import LOST, RECOMPUTED, Done, Ready, Work
from anna_export.text.batching import BatchLimits
from anna_export.text.prompts import Prompt

# One batch is computed while the next one is on its way.
_BATCHES_AHEAD = 2
# A batch lasts about so long where the encoder is slow: what comes next waits no longer.
_BATCH_SECONDS = 0.1
_LEAST_BATCH_TOKENS = 128
# An encoder that takes so many times as long as usual for a batch has stalled.
_STALLED = 20
# How much the latest batch says about the rate.
_NEWS = 0.2


@dataclass(frozen=True, slots=True)
class Item:
    """A text to embed: its token ids, and the prompt whose baked prefix they start with.

    Args:
        ids: All ids.
        prompt: Whose prefix; None where it stands behind none.
        cached: Tokens that the prefix has computed.
    """

    ids: tuple[int, ...]
    prompt: Prompt | None = None
    cached: int = 0

    @property
    def own(self) -> int:
        """Tokens that are to be computed."""
        return len(self.ids) - self.cached


@dataclass(eq=False, slots=True)
class Job:
    """A text in the queue or in the encoder, and how many requests wait for it."""

    item: Item
    future: "asyncio.Future[np.ndarray]"
    waiters: int = 1
    queued: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    finished: float = 0.0


class Scheduler:
    """The queue.

    Args:
        settings: Its limits.
        metrics: What is counted.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._process: EncoderProcess | None = None
        self._jobs: dict[tuple[Prompt | None, tuple[int, ...]], Job] = {}
        self._waiting: dict[Job, None] = {}  # the oldest first
        self._running: dict[int, list[Job]] = {}
        self._numbers = itertools.count()
        self._pending_tokens = 0
        self._rate = 1.0
        self._most = BatchLimits(0)
        self._alarm: asyncio.TimerHandle | None = None
        self.ready: Ready | None = None

    @property
    def pending_tokens(self) -> int:
        """Tokens that wait or are being computed."""
        return self._pending_tokens

    @property
    def limit_tokens(self) -> int:
        """How many tokens may be pending."""
        return max(2 * self.limits.tokens, int(self._settings.queue_seconds * self._rate))

    @property
    def limits(self) -> BatchLimits:
        """What is computed at once."""
        tokens = max(_LEAST_BATCH_TOKENS, int(_BATCH_SECONDS * self._rate))
        return replace(self._most, tokens=min(self._most.tokens, tokens))

    @property
    def is_full(self) -> bool:
        """Whether nothing more is admitted."""
        return self._pending_tokens >= self.limit_tokens

    def attach(self, process: EncoderProcess) -> None:
        """Say who computes."""
        self._process = process

    def submit(self, items: Sequence[Item]) -> list[Job]:
        """Queue a request's texts; `leave` must be called for each job that is returned.

        What is pending decides, not how much the request asks for: one with many texts would else
        wait for ever behind single ones.

        Raises:
            Refusal: If the encoder is not there, or more is pending than it computes in time.
        """
        if self.ready is None:
            raise Refusal.unavailable("the model is not loaded yet, or is being loaded again", 5)
        keys = [(item.prompt, item.ids) for item in items]
        if self.is_full:
            self._metrics.rejected.labels(reason="queue").inc()
            raise Refusal.overloaded(
                f"{self._pending_tokens:,} tokens are waiting, as many as the limit of "
                f"{self.limit_tokens:,} or more",
                math.ceil((self._pending_tokens - self.limit_tokens) / self._rate),
            )
        jobs = []
        for key, item in zip(keys, items, strict=True):
            job = self._jobs.get(key)
            if job is None:
                job = Job(item, asyncio.get_running_loop().create_future())
                self._jobs[key] = job
                self._waiting[job] = None
                self._pending_tokens += item.own
            else:
                job.waiters += 1
            jobs.append(job)
        self._feed()
        return jobs

    def leave(self, job: Job) -> None:
        """Wait for a job no longer; what nobody waits for is not computed."""
        job.waiters -= 1
        if not job.waiters and job in self._waiting:
            del self._waiting[job]
            self._forget(job)
            job.future.cancel()

    def on_ready(self, ready: Ready) -> None:
        """Take work from now on."""
        self.ready = ready
        self._rate = ready.tokens_per_second
        most = self._settings.max_batch_tokens or ready.limits.tokens
        self._most = replace(ready.limits, tokens=most)
        self._feed()

    def on_lost(self) -> None:
        """Refuse all that waits or was being computed: its process is gone."""
        self.ready = None
        self._watch()
        jobs = [*self._waiting, *itertools.chain.from_iterable(self._running.values())]
        self._waiting.clear()
        self._running.clear()
        for job in jobs:
            self._forget(job)
            if not job.future.done():
                job.future.set_exception(
                    Refusal.unavailable("the process that computed this text died", 5)
                )
                # where nobody waits for it any more
                job.future.exception()

    def on_done(self, done: Done) -> None:
        """Give each request its vectors."""
        now = time.perf_counter()
        jobs = self._running.pop(done.number, None)
        if jobs is None:
            return
        self._watch()
        self._metrics.inference.observe(done.seconds)
        tokens = sum(job.item.own for job in jobs)
        if done.seconds > 0 and tokens >= _LEAST_BATCH_TOKENS // 2:
            self._rate += _NEWS * (tokens / done.seconds - self._rate)
        for job, vector, became in zip(jobs, done.vectors, done.became, strict=True):
            self._forget(job)
            job.finished = now
            if became != 0:
                outcome = "recomputed" if became == RECOMPUTED else "lost"
                self._metrics.nonfinite.labels(outcome=outcome).inc()
            if job.future.done():
                continue
            if became == LOST:
                job.future.set_exception(Refusal.lost())
                job.future.exception()
            else:
                job.future.set_result(vector)
        self._feed()

    def _forget(self, job: Job) -> None:
        self._pending_tokens -= job.item.own
        del self._jobs[job.item.prompt, job.item.ids]

    def _watch(self) -> None:
        """Have the encoder killed, and so started again, if the batch it is at never comes back."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self.ready is None or not self._running:
            return
        assert self._process is not None
        tokens = sum(job.item.own for job in next(iter(self._running.values())))
        seconds = max(self._settings.stall_seconds, _STALLED * tokens / self._rate)
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_later(seconds, self._process.kill, f"no batch for {seconds:.0f} s")

    def _feed(self) -> None:
        """Keep the encoder busy."""
        assert self._process is not None
        while self.ready and self._waiting and len(self._running) < _BATCHES_AHEAD:
            oldest = next(iter(self._waiting))
            alike = [
                job
                for job in self._waiting
                if (job.item.prompt, job.item.cached) == (oldest.item.prompt, oldest.item.cached)
            ]
            places = choose_batch([job.item.own for job in alike], self.limits, oldest.item.cached)
            jobs = [alike[place] for place in places]
            now = time.perf_counter()
            for job in jobs:
                del self._waiting[job]
                job.started = now
                self._metrics.queue.observe(now - job.queued)
                self._metrics.prefix_saved.inc(job.item.cached)
            self._metrics.batch_size.observe(len(jobs))
            self._metrics.batch_tokens.observe(sum(job.item.own for job in jobs))
            number = next(self._numbers)
            self._running[number] = jobs
            rows = [list(job.item.ids) for job in jobs]
            self._process.send(Work(number, rows, oldest.item.prompt))
            if len(self._running) == 1:
                self._watch()
        self._metrics.queue_depth.set(len(self._waiting))
