"""Load, loss and death: every request that was taken is answered, and the server goes on."""

import json
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from anna_export.artifact import Artifact
from tests.offline import Offline
from tests.serve.running import Running, running
from tests.serve.stub import vector_of

Stub = Callable[..., Running]
ANSWERED = (200, 429, 503, 504)
# Python's threads take turns; on the event loop it would be the whole time
SLOWEST_HEALTH_SECONDS = 0.5


def at_once(server: Running, bodies: list[dict[str, Any]], **options: Any) -> list[httpx.Response]:
    """Send bodies at the same time."""

    def send(body: dict[str, Any]) -> httpx.Response:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            return client.post("/v1/embeddings", json=body, **options)

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(send, bodies))


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


# -- the queue --


def test_texts_go_to_whom_they_belong(stub: Stub, served_artifact: Artifact) -> None:
    server = stub(us_per_token=20)
    tokeniser = served_artifact.tokeniser()
    requests = [[f"text {n} {m}" for m in range(n % 7 + 1)] for n in range(40)]
    answers = at_once(server, [{"input": texts, "prompt_name": ""} for texts in requests])
    for texts, answer in zip(requests, answers, strict=True):
        expected = [vector_of(np.array(ids), 40) for ids in tokeniser.ids(texts)]
        found = [one["embedding"] for one in answer.json()["data"]]
        np.testing.assert_allclose(found, expected, atol=1e-6)


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
        assert sum(one.result() for one in busy) > 20
    assert waited < 1.5


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
        many = {"input": [f"one of many {n}" for n in range(100)], "prompt_name": ""}
        tries = 1
        while (answer := server.post("/v1/embeddings", many)).status_code == 429:
            tries += 1
            time.sleep(0.02)
            assert time.monotonic() < stop
        assert answer.status_code == 200 and tries < 60
        for one in busy:
            one.result()


# -- deadlines, and clients that leave --


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
        for one in blocking:
            one.result()
    assert server.metric("anna_batch_size_sum") == 2
    assert (
        server.post("/embed", {"inputs": "a"}, headers={"x-deadline-ms": "no"}).status_code == 422
    )


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
        for one in blocking:
            one.result()
    wait_for(lambda: server.metric("anna_queue_depth") == 0)
    assert server.metric("anna_batch_size_sum") == 2
    assert server.metric("anna_requests_total", code="499") == 5


def test_a_client_that_leaves_while_it_sends_is_counted_and_no_more(stub: Stub) -> None:
    server = stub()
    for _ in range(3):
        with server.connect() as client:
            client.sendall(b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.05)
    wait_for(lambda: server.metric("anna_requests_total", code="499") == 3)
    assert all(line.startswith("{") for line in server.lines), server.lines


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


def test_more_requests_than_may_be_answered_at_once_are_refused(stub: Stub) -> None:
    server = stub(us_per_token=1, max_concurrent_requests=4)
    with ThreadPoolExecutor(4) as pool:
        taken = [pool.submit(server.embed, f"slowword {n}", prompt_name="") for n in range(4)]
        time.sleep(0.3)
        for text in ("one more", "large " * 1_000_000):
            answer = server.post("/embed", {"inputs": text})
            assert answer.status_code == 429 and answer.headers["Retry-After"] == "1"
        assert server.client.get("/health").status_code == 200
        for one in taken:
            one.result()
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


# -- what computes --


def test_a_row_that_is_not_finite_is_computed_again_in_the_safe_precision(stub: Stub) -> None:
    server = stub()
    found = server.embed(["fine", "nanword here", "fine too"], prompt_name="")
    assert np.isfinite(np.array(found, dtype=float)).all()
    assert server.metric("anna_nonfinite_total", outcome="recomputed") == 1


def test_a_row_that_stays_so_is_an_error_for_itself_alone(stub: Stub) -> None:
    server = stub(us_per_token=100)
    inputs: list[Any] = [["fine", "lostword"], *(f"neighbour {n}" for n in range(8))]
    lost, *others = at_once(server, [{"input": one, "prompt_name": ""} for one in inputs])
    assert lost.status_code == 424
    assert lost.json()["error"]["param"] == "input.1" and "NaN" in lost.json()["error"]["message"]
    assert {answer.status_code for answer in others} == {200}
    assert server.metric("anna_nonfinite_total", outcome="lost") == 1


def test_the_safe_precision_is_the_stored_weights_in_fp32(served_artifact: Artifact) -> None:
    from anna_export.serve.served import OpenServed
    from anna_export.serve.worker import Work, compute, compute_finite

    served = OpenServed(served_artifact.folder)()
    rows = served.encoder.tokeniser.ids(["one text", "another"])
    expected = compute(served.encoder, rows, None)

    class Spoiled:
        """The backend, whose second row is lost."""

        spec = served.encoder.backend.spec

        def run(self, batch: Any) -> np.ndarray:
            found = inner.run(batch).copy()
            found[1] = np.nan
            return found

    inner: Any = served.encoder.backend
    served.encoder.backend = Spoiled()  # type: ignore[assignment]
    found, became = compute_finite(
        served.encoder, Work(0, rows, None), lambda lost: compute(served.open_safe(), lost, None)
    )
    assert became.tolist() == [0, 1]
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


def test_a_safe_precision_that_does_not_fit_costs_that_row_alone(
    served_artifact: Artifact,
) -> None:
    from anna_export.serve.served import OpenServed
    from anna_export.serve.worker import Work, compute_finite

    encoder = OpenServed(served_artifact.folder)().encoder
    inner: Any = encoder.backend

    class Spoiled:
        """The backend, whose second row is lost."""

        spec = inner.spec

        def run(self, batch: Any) -> np.ndarray:
            found: np.ndarray = inner.run(batch).copy()
            found[1] = np.nan
            return found

    def too_large(rows: Any) -> np.ndarray:
        raise MemoryError

    encoder.backend = Spoiled()  # type: ignore[assignment]
    rows = encoder.tokeniser.ids(["one text", "another"])
    found, became = compute_finite(encoder, Work(0, rows, None), too_large)
    assert became.tolist() == [0, 2] and np.isfinite(found).all()


def encoder_pid(server: Running) -> int:
    (child,) = [
        child
        for child in psutil.Process(server.process.pid).children()
        if "spawn_main" in " ".join(child.cmdline())
    ]
    return child.pid


def test_an_encoder_that_is_killed_is_started_again(stub: Stub) -> None:
    server = stub(us_per_token=50)
    first = encoder_pid(server)
    with ThreadPoolExecutor(16) as pool:
        stop = time.monotonic() + 1.5

        def ask(worker: int) -> list[int]:
            codes: list[int] = []
            with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
                while time.monotonic() < stop:
                    body = {"input": f"text {worker} {len(codes)}", "prompt_name": ""}
                    answer = client.post("/v1/embeddings", json=body)
                    codes.append(answer.status_code)
                    if answer.status_code == 503:
                        assert int(answer.headers["retry-after"]) >= 1
                        time.sleep(0.05)
            return codes

        asking = [pool.submit(ask, worker) for worker in range(16)]
        time.sleep(0.5)
        os.kill(first, signal.SIGKILL)
        codes = [code for one in asking for code in one.result()]
    assert set(codes) == {200, 503}
    server.wait_until_ready()
    assert encoder_pid(server) != first
    assert server.embed("after") and server.metric("anna_encoder_restarts") == 1


def test_an_encoder_that_hangs_is_started_again_and_its_requests_are_answered(stub: Stub) -> None:
    server = stub(stall_seconds=1)
    first = encoder_pid(server)
    os.kill(first, signal.SIGSTOP)
    started = time.monotonic()
    answers = at_once(server, [{"input": f"text {n}"} for n in range(4)])
    assert time.monotonic() - started < 10
    assert {answer.status_code for answer in answers} == {503}
    server.wait_until_ready()
    assert encoder_pid(server) != first and server.embed("after")


def test_slow_work_is_not_taken_for_a_hang(stub: Stub) -> None:
    server = stub(us_per_token=20_000, stall_seconds=0.2, max_queue_seconds=1000)
    assert server.embed([f"text {n}" for n in range(8)], prompt_name="")
    assert server.metric("anna_encoder_restarts") == 0


def test_a_text_that_kills_the_encoder_costs_its_own_request(stub: Stub) -> None:
    server = stub()
    assert server.post("/v1/embeddings", {"input": "killword"}).status_code == 503
    server.wait_until_ready()
    assert server.embed("after")


def test_the_encoder_ends_with_a_server_that_is_killed(stub: Stub) -> None:
    server = stub()
    child = psutil.Process(encoder_pid(server))
    server.process.kill()
    server.process.wait(5)
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


# -- the end --


def test_sigterm_under_load_answers_what_was_taken_and_exits_with_0(stub: Stub) -> None:
    server = stub(us_per_token=200, max_queue_seconds=5)
    with ThreadPoolExecutor(17) as pool:

        def ask(worker: int) -> list[int]:
            codes: list[int] = []
            with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
                for count in range(10_000):
                    body = {"input": f"text {worker} {count}", "prompt_name": ""}
                    try:
                        codes.append(client.post("/v1/embeddings", json=body).status_code)
                    except httpx.TransportError:  # nobody listens any more
                        break
                    if codes[-1] == 503:
                        break
            return codes

        asking = [pool.submit(ask, worker) for worker in range(16)]
        slow = pool.submit(server.post, "/v1/embeddings", {"input": "slowword at the end"})
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        codes = [code for one in asking for code in one.result()]
        assert slow.result().status_code == 200
    assert server.process.wait(10) == 0
    assert set(codes) <= {200, 503} and codes.count(200) >= 16
    assert server.wait_for("stopped")["unfinished"] == 0


def test_sigterm_leaves_a_slow_reader_the_time_to_drain(stub: Stub) -> None:
    server = stub(drain_seconds=20)
    body = json.dumps({"inputs": ["a " * 200] * 1024}).encode()
    head = b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    with server.connect(receive_bytes=4096) as client:
        client.sendall(head + body)
        server.wait_for("request")
        server.process.send_signal(signal.SIGTERM)
        time.sleep(4)
        answer = b""
        while part := client.recv(1 << 16):
            answer += part
    # more than the system takes at once
    assert len(answer) > 5 << 20 and len(json.loads(answer.partition(b"\r\n\r\n")[2])) == 1024
    assert server.process.wait(10) == 0


def test_draining_has_an_end(stub: Stub) -> None:
    server = stub(us_per_token=1, drain_seconds=0.3)
    with ThreadPoolExecutor(8) as pool:
        asking = [
            pool.submit(server.post, "/v1/embeddings", {"input": f"slowword {n}"}) for n in range(6)
        ]
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert server.process.wait(10) == 0
        assert time.monotonic() - started < 5
        for one in asking:
            error = one.exception()
            assert isinstance(error, httpx.TransportError) or one.result().status_code in ANSWERED


def test_ctrl_c_exits_with_130(served_artifact: Artifact) -> None:
    with running(served_artifact.folder) as server:
        server.wait_until_ready()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 130


def test_memory_stays_flat(stub: Stub) -> None:
    server = stub(max_queue_seconds=1000)
    parts = [psutil.Process(server.process.pid), psutil.Process(encoder_pid(server))]

    def ask(count: int) -> None:
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            for number in range(count):
                body = {"input": [f"text {number} {n}" for n in range(4)], "prompt_name": ""}
                assert client.post("/v1/embeddings", json=body).status_code == 200

    ask(300)
    before = [part.memory_info().rss for part in parts]
    ask(2000)
    after = [part.memory_info().rss for part in parts]
    assert all(b - a < 8 << 20 for a, b in zip(before, after, strict=True)), (before, after)


# -- what cannot be served --


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--backend", "trt"), "expected a CUDA device and driver for --backend trt, found none"),
        (("--require-verified",), "expected a passing parity verdict for ort: fp32 on CPU in"),
        (("--max-batch-tokens", "0"), "expected --max-batch-tokens above 0, found 0"),
        (("--api-key-file", "/nowhere"), "expected API keys, one a line, in /nowhere"),
    ],
    ids=["backend", "not verified", "limit", "keys"],
)
def test_what_cannot_be_served_ends_in_one_line(
    served_artifact: Artifact, options: tuple[str, ...], found: str
) -> None:
    import subprocess
    import sys

    from tests.serve.running import SERVE

    run = subprocess.run(
        [sys.executable, *SERVE, str(served_artifact.folder), "--port", "0", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 2
    told = [line for line in run.stderr.splitlines() if not line.startswith("{")]
    assert len(told) == 1 and told[0].startswith(f"anna-export: {found}"), run.stderr


def test_a_port_that_is_taken_is_said(served_artifact: Artifact) -> None:
    from anna_export.errors import InputError
    from anna_export.serve.server import listen

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"expected to listen on 127\.0\.0\.1 port .*in use"):
            listen("127.0.0.1", taken.getsockname()[1])


def test_an_artifact_that_computes_something_else_than_when_it_was_proved_is_not_served(
    artifact: Artifact, tmp_path: Path
) -> None:
    from anna_export.artifact import PARITY_FILE, add_evidence, open_artifact
    from anna_export.errors import DamagedError
    from anna_export.golden import read_golden
    from anna_export.serve.served import OpenServed
    from anna_export.serve.worker import self_test

    shutil.copytree(artifact.folder, tmp_path / "artifact")
    opened = open_artifact(tmp_path / "artifact")
    golden = read_golden(opened)
    assert len(golden) == 4 and all(one.cosine > 0.999999 for one in golden)
    served = OpenServed(tmp_path / "artifact")()
    assert self_test(served.encoder, served.golden).backend == "ort"
    # as if another model's weights had been proved
    proof = json.loads((tmp_path / "artifact" / PARITY_FILE).read_text())
    vectors = [one["vector"] for one in proof["vectors"]["golden"]]
    for one, vector in zip(proof["vectors"]["golden"], vectors[1:] + vectors[:1], strict=True):
        one["vector"] = vector
    add_evidence(opened, PARITY_FILE, json.dumps(proof))
    served = OpenServed(tmp_path / "artifact")()
    with pytest.raises(DamagedError, match=r"expected a cosine of 1\.0000 to a golden vector"):
        self_test(served.encoder, served.golden)


def test_verified_artifacts_are_served_where_it_is_required(artifact: Artifact) -> None:
    with running(artifact.folder, "--require-verified") as server:
        assert server.wait_until_ready().embed("a")


def test_nothing_beyond_this_machine_is_asked_for(
    served_artifact: Artifact, tmp_path: Path
) -> None:
    offline = Offline(tmp_path)
    with running(served_artifact.folder, environment=offline.environment) as server:
        assert server.wait_until_ready().embed(["a", "b"])
        server.client.get("/info")
    assert offline.asked() == ""
