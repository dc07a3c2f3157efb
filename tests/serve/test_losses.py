"""Vectors that are not finite, encoders that die or hang: the server goes on."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from anna_export.artifact.folder import Artifact
from anna_export.encoder import Backend, Encoder
from anna_export.text.batch import TokenBatch
from tests.serve.running import Stub, at_once, wait_for


class Spoiled:
    """A backend whose second row is lost."""

    def __init__(self, backend: Backend) -> None:
        self.name, self.compute_label, self.spec = backend.name, backend.compute_label, backend.spec
        self._backend = backend

    def run(self, batch: TokenBatch) -> np.ndarray:
        vectors = self._backend.run(batch).copy()
        vectors[1] = np.nan
        return vectors


def test_a_row_that_is_not_finite_is_computed_again_in_the_safe_precision(stub: Stub) -> None:
    server = stub()
    vectors = server.embed(["fine", "nanword here", "fine too"], prompt_name="")
    assert np.isfinite(np.array(vectors, dtype=float)).all()
    assert server.metric("anna_nonfinite_total", outcome="recomputed") == 1


def test_a_row_that_stays_so_is_an_error_for_itself_alone(stub: Stub) -> None:
    server = stub(us_per_token=100)
    inputs: list[Any] = [["fine", "lostword"], *(f"neighbour {n}" for n in range(8))]
    lost, *others = at_once(server, [{"input": texts, "prompt_name": ""} for texts in inputs])
    assert lost.status_code == 424
    assert lost.json()["error"]["param"] == "input.1" and "NaN" in lost.json()["error"]["message"]
    assert {answer.status_code for answer in others} == {200}
    assert server.metric("anna_nonfinite_total", outcome="lost") == 1


def test_the_safe_precision_is_the_stored_weights_in_fp32(served_artifact: Artifact) -> None:
    from anna_export.serve.load_model import ModelLoader
    from anna_export.serve.worker import EncodeBatch, compute, compute_finite

    model = ModelLoader(served_artifact.folder)()
    rows = model.encoder.tokeniser.ids(["one text", "another"])
    expected = compute(model.encoder, rows)
    model.encoder.backend = Spoiled(model.encoder.backend)
    vectors, outcomes = compute_finite(model, EncodeBatch(0, rows))
    assert outcomes.tolist() == [0, 1]
    np.testing.assert_allclose(vectors, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("cached_tokens", [20, 12], ids=["all of the prefix", "a part of it"])
def test_rows_after_a_prefix_are_those_of_all_their_tokens(
    served_artifact: Artifact, cached_tokens: int
) -> None:
    from anna_export.serve.load_model import ModelLoader
    from anna_export.serve.worker import EncodeBatch, compute, compute_finite

    model = ModelLoader(served_artifact.folder)()
    prompt = served_artifact.manifest.prompts.find("query")
    prefix = model.prefix_ids[prompt][:cached_tokens]
    assert len(prefix) == cached_tokens
    rows = [[500, 501, 2], [7, 8, 9, 2]]
    expected = compute(model.encoder, [[*prefix, *row] for row in rows])
    batch = EncodeBatch(0, rows, prompt, cached_tokens)
    backend = model.encoder.backend
    for used, lost in ((backend, 0), (Spoiled(backend), 1)):  # with the prefix, and without
        model.encoder.backend = used
        vectors, outcomes = compute_finite(model, batch)
        assert outcomes.tolist() == [0, lost]
        np.testing.assert_allclose(vectors, expected, atol=2e-6, rtol=0)
    model.encoder.backend, model.encoder.prefixes = backend, None
    vectors, _ = compute_finite(model, batch)
    np.testing.assert_allclose(vectors, expected, atol=2e-6, rtol=0)


def test_a_safe_precision_that_does_not_fit_costs_that_row_alone(
    served_artifact: Artifact,
) -> None:
    from anna_export.serve.load_model import ModelLoader
    from anna_export.serve.worker import EncodeBatch, compute_finite

    def too_large() -> Encoder:
        raise MemoryError

    model = replace(ModelLoader(served_artifact.folder)(), open_safe=too_large)
    model.encoder.backend = Spoiled(model.encoder.backend)
    rows = model.encoder.tokeniser.ids(["one text", "another"])
    vectors, outcomes = compute_finite(model, EncodeBatch(0, rows))
    assert outcomes.tolist() == [0, 2] and np.isfinite(vectors).all()


@pytest.mark.slow
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
        codes = [code for task in asking for code in task.result()]
    assert set(codes) == {200, 503}
    server.wait_until_ready()
    assert server.encoder_pid != first
    assert server.embed("after") and server.metric("anna_encoder_restarts") == 1


@pytest.mark.slow
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


@pytest.mark.slow
def test_slow_work_is_not_taken_for_a_hang(stub: Stub) -> None:
    server = stub(us_per_token=20_000, stall_seconds=0.2, max_queue_seconds=1000)
    assert server.embed([f"text {n}" for n in range(8)], prompt_name="")
    assert server.metric("anna_encoder_restarts") == 0


@pytest.mark.slow
def test_a_text_that_kills_the_encoder_costs_its_own_request(stub: Stub) -> None:
    server = stub()
    assert server.post("/v1/embeddings", {"input": "killword"}).status_code == 503
    server.wait_until_ready()
    assert server.embed("after")


@pytest.mark.slow
def test_the_encoder_ends_with_a_server_that_is_killed(stub: Stub) -> None:
    server = stub()
    child = psutil.Process(server.encoder_pid)
    server.process.kill()
    server.process.wait(5)
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
