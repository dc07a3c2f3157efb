"""More work than there is time for, and clients that are slow or leave: all are answered."""

import resource
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from anna_export.artifact.folder import Artifact
from tests.serve.running import Stub, at_once, wait_for
from tests.serve.stub import vector_of

# Python's threads take turns; on the event loop it would be the whole time
SLOWEST_HEALTH_SECONDS = 0.5


# -- the queue --


@pytest.mark.slow
def test_texts_go_to_whom_they_belong(stub: Stub, served_artifact: Artifact) -> None:
    server = stub(us_per_token=20)
    tokeniser = served_artifact.tokeniser()
    requests = [[f"text {n} {m}" for m in range(n % 7 + 1)] for n in range(40)]
    answers = at_once(server, [{"input": texts, "prompt_name": ""} for texts in requests])
    for texts, answer in zip(requests, answers, strict=True):
        expected = [vector_of(np.array(ids), 40) for ids in tokeniser.ids(texts)]
        vectors = [entry["embedding"] for entry in answer.json()["data"]]
        np.testing.assert_allclose(vectors, expected, atol=1e-6)


@pytest.mark.slow
def test_equal_texts_in_flight_are_computed_once(stub: Stub) -> None:
    server = stub(us_per_token=1)
    at_once(server, [{"input": "slowword first"}])
    before = server.metric("anna_batch_size_sum")
    started = time.monotonic()
    answers = at_once(server, [{"input": ["slowword the same"] * 3}] * 8)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text.split('"usage"')[0] for answer in answers}) == 1
    assert server.metric("anna_batch_size_sum") - before <= 2
    assert time.monotonic() - started < 3


@pytest.mark.slow
@pytest.mark.parametrize("texts", [1, 40], ids=["single texts", "many texts a request"])
def test_more_than_is_computed_in_time_is_refused_with_when_to_come_back(
    stub: Stub, texts: int
) -> None:
    server = stub(us_per_token=2000, max_queue_seconds=0.5)
    bodies = [
        {"input": [f"some words of text {n} {m}" for m in range(texts)], "prompt_name": ""}
        for n in range(120 // max(1, texts // 4))
    ]
    answers = at_once(server, bodies)
    kinds = [answer.status_code for answer in answers]
    assert set(kinds) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert 1 <= int(answer.headers["retry-after"]) <= 10
            assert answer.json()["error"]["code"] == "overloaded"
    assert server.metric("anna_rejected_total", reason="queue") == kinds.count(429)
    assert server.embed("and again")


@pytest.mark.slow
def test_a_long_text_is_not_starved_by_short_ones(stub: Stub) -> None:
    server = stub(us_per_token=300, max_queue_seconds=1000)
    with ThreadPoolExecutor(9) as pool:
        stop = time.monotonic() + 3

        def shorts(worker: int) -> int:
            count = 0
            while time.monotonic() < stop:
                server.embed(f"short {worker} {count}", prompt_name="")
                count += 1
            return count

        busy = [pool.submit(shorts, worker) for worker in range(8)]
        time.sleep(0.3)
        started = time.monotonic()
        server.embed("word " * 240, prompt_name="")
        waited = time.monotonic() - started
        assert sum(task.result() for task in busy) > 20
    assert waited < 1.5


@pytest.mark.slow
def test_many_texts_in_one_request_are_not_starved_by_single_ones(stub: Stub) -> None:
    server = stub(us_per_token=1000, max_queue_seconds=0.3)
    with ThreadPoolExecutor(13) as pool:
        stop = time.monotonic() + 6

        def singles(worker: int) -> None:
            with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
                count = 0
                while time.monotonic() < stop:
                    body = {"input": f"single {worker} {count}", "prompt_name": ""}
                    client.post("/v1/embeddings", json=body)
                    count += 1

        busy = [pool.submit(singles, worker) for worker in range(12)]
        time.sleep(0.5)
        request = {"input": [f"one of many {n}" for n in range(100)], "prompt_name": ""}
        tries = 1
        while (answer := server.post("/v1/embeddings", request)).status_code == 429:
            tries += 1
            time.sleep(0.02)
            assert time.monotonic() < stop
        assert answer.status_code == 200 and tries < 60
        for task in busy:
            task.result()


# -- deadlines, and clients that leave --


@pytest.mark.slow
def test_a_deadline_that_passes_is_answered_504_and_its_text_is_not_computed(stub: Stub) -> None:
    server = stub(us_per_token=1)
    with ThreadPoolExecutor(2) as pool:
        blocking = [pool.submit(server.embed, f"slowword {n}", prompt_name="") for n in range(2)]
        time.sleep(0.3)
        started = time.monotonic()
        answer = server.post(
            "/v1/embeddings", {"input": "too late"}, headers={"x-deadline-ms": "200"}
        )
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline"
        assert time.monotonic() - started < 0.6
        for task in blocking:
            task.result()
    assert server.metric("anna_batch_size_sum") == 2
    assert (
        server.post("/embed", {"inputs": "a"}, headers={"x-deadline-ms": "no"}).status_code == 422
    )


@pytest.mark.slow
def test_work_of_clients_that_left_is_dropped(stub: Stub) -> None:
    server = stub(us_per_token=1)
    with ThreadPoolExecutor(2) as pool:
        blocking = [pool.submit(server.embed, f"slowword {n}", prompt_name="") for n in range(2)]
        time.sleep(0.3)
        body = b'{"inputs": "nobody waits for this"}'
        head = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        for _ in range(5):
            with server.connect() as client:
                client.sendall(head + body)
                time.sleep(0.02)
        for task in blocking:
            task.result()
    wait_for(lambda: server.metric("anna_queue_depth") == 0)
    assert server.metric("anna_batch_size_sum") == 2
    assert server.metric("anna_requests_total", code="499") == 5


@pytest.mark.slow
def test_a_client_that_leaves_while_it_sends_is_counted_and_no_more(stub: Stub) -> None:
    server = stub()
    for _ in range(3):
        with server.connect() as client:
            client.sendall(b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.05)
    wait_for(lambda: server.metric("anna_requests_total", code="499") == 3)
    assert all(line.startswith("{") for line in server.lines), server.lines


@pytest.mark.slow
def test_tokenising_a_long_text_holds_nobody_up(stub: Stub) -> None:
    server = stub()
    long = "many words of a long text " * 80_000
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(server.post, "/tokenize", {"inputs": long})
        slowest = 0.0
        while not busy.done():
            started = time.monotonic()
            with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
                client.get("/health")
            slowest = max(slowest, time.monotonic() - started)
        assert busy.result().status_code == 200
    assert slowest < SLOWEST_HEALTH_SECONDS


@pytest.mark.slow
def test_slow_clients_are_sent_away_and_hold_nobody_up(stub: Stub) -> None:
    server = stub(body_seconds=1)
    head = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
    clients = [server.connect() for _ in range(50)]
    for client in clients:
        client.sendall(head + b"{")
    started = time.monotonic()
    assert server.embed("quick")
    assert time.monotonic() - started < 1
    answers = [client.recv(4096) for client in clients]
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
    for client in clients:
        client.close()


@pytest.mark.slow
def test_1000_connections(stub: Stub) -> None:
    server = stub(max_queue_seconds=1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    body = b'{"inputs": "one of many", "prompt_name": ""}'
    head = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    clients = [server.connect() for _ in range(1000)]
    try:
        for client in clients:
            client.sendall(head + body)
        answers = [client.recv(65536) for client in clients]
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sum(answer.startswith(b"HTTP/1.1 200 ") for answer in answers) == 1000


@pytest.mark.slow
def test_more_requests_than_may_be_answered_at_once_are_refused(stub: Stub) -> None:
    server = stub(us_per_token=1, max_concurrent_requests=4)
    with ThreadPoolExecutor(4) as pool:
        taken = [pool.submit(server.embed, f"slowword {n}", prompt_name="") for n in range(4)]
        time.sleep(0.3)
        for text in ("one more", "large " * 1_000_000):
            answer = server.post("/embed", {"inputs": text})
            assert answer.status_code == 429 and answer.headers["Retry-After"] == "1"
        assert server.client.get("/health").status_code == 200
        for task in taken:
            task.result()
    assert server.metric("anna_rejected_total", reason="requests") == 2
    assert server.embed("and again")


def test_bodies_of_many_clients_are_bounded_together(stub: Stub) -> None:
    server = stub(payload_limit=1000)
    body = b'{"inputs": "a"%s}' % (b" " * 980)
    head = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    for _ in range(2):  # what was held is given back
        clients = [server.connect() for _ in range(80)]
        for client in clients:
            client.sendall(head + body[:-1])
        time.sleep(0.3)
        for client in clients:
            client.sendall(body[-1:])
        answers = [client.recv(4096) for client in clients]
        for client in clients:
            client.close()
        refused = sum(answer.startswith(b"HTTP/1.1 429 ") for answer in answers)
        assert refused == 80 - 64_000 // (len(body) - 1)
        assert sum(answer.startswith(b"HTTP/1.1 200 ") for answer in answers) == 80 - refused
    assert server.embed("alive")
