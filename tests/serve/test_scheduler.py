"""The queue's rules, with an encoder that only keeps what it was sent: no server, no model."""

import pytest

from anna_export.serve.config import ServerConfig
from anna_export.serve.metrics import Metrics
from anna_export.serve.queue_item import QueueItem
from anna_export.serve.refusal import Refusal
from anna_export.serve.scheduler import Scheduler
from anna_export.serve.worker import Outcome
from anna_export.text.prompts import Prompt
from tests.serve.queueing import (
    BATCH_TOKENS,
    MAX_PENDING,
    Clock,
    Queue,
    Recorder,
    busy,
    on_loop,
    text,
)

# -- admission --


@on_loop
async def test_nothing_is_admitted_before_the_encoder_is_ready() -> None:
    scheduler = Scheduler(ServerConfig("small"), Metrics(), Recorder())
    with pytest.raises(Refusal) as refused:
        scheduler.submit([text(1)])
    assert refused.value.status(openai=True) == 503
    assert refused.value.headers == {"Retry-After": "5"}


@on_loop
async def test_a_full_queue_refuses_with_the_seconds_until_it_has_room() -> None:
    queue = Queue()
    queue.submit(*(text(token, 100) for token in range(6)))
    assert queue.scheduler.pending_tokens == 600
    with pytest.raises(Refusal) as refused:
        queue.submit(text(7))
    assert refused.value.status(openai=True) == 429
    # 600 pending of at most 256, at 100 a second: 3.44
    assert refused.value.headers == {"Retry-After": "4"}
    assert "600 tokens are waiting, as many as the limit of 256 or more" in refused.value.message
    assert queue.count("anna_rejected_total", reason="queue") == 1


@on_loop
async def test_a_queue_that_is_just_full_refuses_for_a_second_and_admits_when_a_text_is_done() -> (
    None
):
    queue = Queue()
    queue.submit(text(1, MAX_PENDING - 1))
    queue.submit(text(2))
    with pytest.raises(Refusal) as refused:
        queue.submit(text(3))
    assert refused.value.headers == {"Retry-After": "1"}
    queue.finish(queue.encoder.batches[0])
    queue.submit(text(3))
    assert queue.scheduler.pending_tokens == 2


@on_loop
async def test_queue_seconds_admit_what_is_computed_in_that_time() -> None:
    assert Queue(rate=1000.0, queue_seconds=3.0).scheduler.max_pending_tokens == 3000
    # two batches at least: one is computed, one is on its way
    assert Queue(rate=1.0, queue_seconds=3.0).scheduler.max_pending_tokens == MAX_PENDING


@on_loop
async def test_tokens_of_a_cached_prefix_are_not_pending() -> None:
    queue = Queue()
    queue.submit(QueueItem((5, 6), Prompt("a: "), cached_tokens=500))
    assert queue.scheduler.pending_tokens == 2


@on_loop
async def test_the_rate_follows_the_batches() -> None:
    queue = Queue(rate=1000.0, queue_seconds=10.0)
    queue.submit(text(1, 100))
    queue.finish(queue.encoder.batches[0], seconds=0.05)  # 2,000 tokens a second
    assert queue.scheduler.max_pending_tokens == 10 * 1200
    # a batch of few tokens says little of the rate
    queue.submit(text(2))
    queue.finish(queue.encoder.batches[1], seconds=10.0)
    assert queue.scheduler.max_pending_tokens == 10 * 1200


# -- batches --


@on_loop
async def test_two_batches_run_at_once_and_a_third_follows_the_first() -> None:
    queue = Queue()
    queue.submit(*(text(token, BATCH_TOKENS) for token in range(3)))
    assert [batch.rows[0][0] for batch in queue.encoder.batches] == [0, 1]
    assert queue.count("anna_queue_depth") == 1
    queue.finish(queue.encoder.batches[0])
    assert [batch.rows[0][0] for batch in queue.encoder.batches] == [0, 1, 2]


@on_loop
async def test_a_batch_has_one_prefix_of_one_length() -> None:
    queue, prompt = busy(), Prompt("a: ")
    queue.submit(
        QueueItem((3,), prompt, 9), text(4), QueueItem((5,), prompt, 9), QueueItem((6,), prompt, 8)
    )
    queue.finish_all()
    assert [
        (batch.prompt, batch.cached_tokens, batch.rows) for batch in queue.encoder.batches[2:]
    ] == [(prompt, 9, [[3], [5]]), (None, 0, [[4]]), (prompt, 8, [[6]])]


@on_loop
async def test_each_job_gets_its_own_vector() -> None:
    queue = Queue()
    items = [text(token, length) for token, length in ((1, 60), (2, 3), (3, 61), (4, 4))]
    jobs = queue.submit(*items)
    queue.finish_all()
    assert [float(job.future.result()[0]) for job in jobs] == [1, 2, 3, 4]
    assert queue.scheduler.pending_tokens == 0 and queue.count("anna_queue_depth") == 0


@on_loop
async def test_the_oldest_text_is_in_the_next_batch_though_others_fill_it_better() -> None:
    queue, prompt = busy(), Prompt("a: ")
    short = [text(token, 8) for token in range(10, 26)]  # 128 tokens in all
    prefixed = [QueueItem((token,) * 8, prompt, 9) for token in range(30, 46)]
    queue.submit(text(3, 90), *short, *prefixed)
    queue.finish(queue.encoder.batches[0])
    assert queue.encoder.batches[2].rows == [[3] * 90]


@on_loop
async def test_a_request_of_many_texts_is_admitted_as_soon_as_a_single_text_is() -> None:
    queue = busy()
    jobs = queue.submit(*(text(token, 50) for token in range(100, 200)))
    assert len(jobs) == 100 and queue.scheduler.pending_tokens == 240 + 5000
    queue.finish_all()
    assert all(job.future.done() for job in jobs)


# -- equal texts, and clients that leave --


@on_loop
async def test_equal_texts_are_computed_once_while_they_wait_or_run() -> None:
    queue = Queue()
    first, second = queue.submit(text(1), text(1))
    (third,) = queue.submit(text(1))  # it runs by now
    assert first is second is third and first.waiters == 3
    assert [batch.rows for batch in queue.encoder.batches] == [[[1]]]
    assert queue.scheduler.pending_tokens == 1
    queue.finish_all()
    (later,) = queue.submit(text(1))
    assert later is not first and len(queue.encoder.batches) == 2


@on_loop
async def test_equal_ids_after_another_prefix_are_another_text() -> None:
    queue = Queue()
    prompt, other = Prompt("a: "), Prompt("b: ")
    jobs = queue.submit(QueueItem((1,)), QueueItem((1,), prompt, 4), QueueItem((1,), other, 4))
    assert len(set(map(id, jobs))) == 3


@on_loop
async def test_a_text_that_nobody_waits_for_is_not_computed() -> None:
    queue = busy()
    wanted, unwanted, shared, _ = queue.submit(text(3), text(4), text(5), text(5))
    queue.scheduler.leave(unwanted)
    queue.scheduler.leave(shared)
    assert unwanted.future.cancelled() and not shared.future.cancelled()
    assert queue.scheduler.pending_tokens == 240 + 2
    queue.finish_all()
    assert [batch.rows for batch in queue.encoder.batches[2:]] == [[[3], [5]]]
    assert wanted.future.done() and shared.future.done()


# -- vectors that are not finite, and encoders that die or hang --


@on_loop
async def test_a_lost_vector_is_refused_and_its_neighbours_are_not() -> None:
    queue = Queue()
    fine, recomputed, lost = queue.submit(text(1), text(2), text(3))
    outcomes = [Outcome.FINITE, Outcome.RECOMPUTED, Outcome.LOST]
    queue.finish(queue.encoder.batches[0], outcomes)
    assert fine.future.result() == [1] and recomputed.future.result() == [2]
    with pytest.raises(Refusal, match="expected a finite vector"):
        lost.future.result()
    for outcome in ("recomputed", "lost"):
        assert queue.count("anna_nonfinite_total", outcome=outcome) == 1


@on_loop
async def test_all_texts_of_a_dead_encoder_are_refused_and_none_is_pending() -> None:
    queue = Queue()
    jobs = queue.submit(*(text(token, BATCH_TOKENS) for token in range(4)))
    batches = list(queue.encoder.batches)
    queue.scheduler.on_lost()
    for job in jobs:
        with pytest.raises(Refusal, match="the process that computed this text died"):
            job.future.result()
    assert queue.scheduler.pending_tokens == 0 and queue.scheduler.ready is None
    queue.finish(batches[0])  # it was on its way while the process died
    assert len(queue.encoder.batches) == 2


@on_loop
async def test_a_batch_that_never_comes_back_kills_the_encoder(clock: Clock) -> None:
    queue = Queue(stall_seconds=30)
    queue.submit(text(1, 200))
    # 200 tokens usually take 2 s; 20 times that is more than stall_seconds
    await clock.advance(39.9)
    assert not queue.encoder.kills
    await clock.advance(0.2)
    assert queue.encoder.kills == ["no batch for 40 s"]


@on_loop
async def test_stall_seconds_are_the_least_that_a_batch_may_take(clock: Clock) -> None:
    queue = Queue(stall_seconds=30)
    queue.submit(text(1, 10))
    await clock.advance(29.9)
    assert not queue.encoder.kills
    await clock.advance(0.2)
    assert queue.encoder.kills == ["no batch for 30 s"]


@on_loop
async def test_the_time_of_a_batch_starts_when_the_batch_before_it_is_done(clock: Clock) -> None:
    queue = Queue(stall_seconds=200)
    queue.submit(text(1, 100), text(2, 120))
    assert len(queue.encoder.batches) == 2
    await clock.advance(150)
    queue.finish(queue.encoder.batches[0])
    await clock.advance(150)
    assert not queue.encoder.kills
    queue.finish(queue.encoder.batches[1])
    await clock.advance(1000)  # nothing runs
    assert not queue.encoder.kills


@on_loop
async def test_a_dead_encoder_is_not_killed_for_the_batch_it_had(clock: Clock) -> None:
    queue = Queue(stall_seconds=30)
    (job,) = queue.submit(text(1))
    queue.scheduler.on_lost()
    await clock.advance(1000)
    assert not queue.encoder.kills and job.future.exception() is not None


@on_loop
async def test_a_batch_that_is_sent_gives_the_batch_before_it_no_more_time(clock: Clock) -> None:
    queue = Queue(stall_seconds=30)
    queue.submit(text(1))
    await clock.advance(20)
    queue.submit(text(2))
    await clock.advance(11)
    assert queue.encoder.kills == ["no batch for 30 s"]
