"""Vectors that are not finite, encoders that die or hang: the server goes on."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import psutil

from anna_export.artifact.folder import Artifact
from tests.serve.running import Stub, at_once, wait_for


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


def test_an_encoder_that_is_killed_is_started_again(stub: Stub) -> None:
    server = stub(us_per_token=50)
    first = server.encoder_pid
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
    assert server.encoder_pid != first
    assert server.embed("after") and server.metric("anna_encoder_restarts") == 1


def test_an_encoder_that_hangs_is_started_again_and_its_requests_are_answered(stub: Stub) -> None:
    server = stub(stall_seconds=1)
    first = server.encoder_pid
    os.kill(first, signal.SIGSTOP)
    started = time.monotonic()
    answers = at_once(server, [{"input": f"text {n}"} for n in range(4)])
    assert time.monotonic() - started < 10
    assert {answer.status_code for answer in answers} == {503}
    server.wait_until_ready()
    assert server.encoder_pid != first and server.embed("after")


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
    child = psutil.Process(server.encoder_pid)
    server.process.kill()
    server.process.wait(5)
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
