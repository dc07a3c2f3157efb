"""From start to end: what is not served, SIGTERM, Ctrl-C, memory."""

import errno
import json
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from anna_export.artifact.folder import Artifact
from anna_export.errors import InputError
from anna_export.serve.config import ServerConfig
from anna_export.serve.server import listen, run_server
from anna_export.serve.worker import LoadedModel
from tests.offline import Offline
from tests.serve.running import ANSWERED, Stub, running

# -- the end --


@pytest.mark.slow
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
        codes = [code for task in asking for code in task.result()]
        assert slow.result().status_code == 200
    assert server.process.wait(10) == 0
    assert set(codes) <= {200, 503} and codes.count(200) >= 16
    assert server.wait_for("stopped")["unfinished"] == 0


@pytest.mark.slow
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


@pytest.mark.slow
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
        for task in asking:
            error = task.exception()
            assert isinstance(error, httpx.TransportError) or task.result().status_code in ANSWERED


@pytest.mark.slow
def test_ctrl_c_exits_with_130(served_artifact: Artifact) -> None:
    with running(served_artifact.folder) as server:
        server.wait_until_ready()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 130


@pytest.mark.slow
def test_memory_stays_flat(stub: Stub) -> None:
    server = stub(max_queue_seconds=1000)
    parts = [psutil.Process(server.process.pid), psutil.Process(server.encoder_pid)]

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
    ("options", "message"),
    [
        (("--backend", "trt"), "expected a CUDA device and driver for --backend trt, found none"),
        pytest.param(
            ("--require-verified",),
            "expected a passing parity verdict for ort: fp32 on CPU in",
            marks=pytest.mark.slow,
        ),
        (("--max-batch-tokens", "0"), "expected --max-batch-tokens above 0, found 0"),
        (("--api-key-file", "/nowhere"), "expected API keys, one a line, in /nowhere"),
        (
            ("--cors-allow-origin", "*", "--cors-allow-origin", "https://a.b/c"),
            "expected --cors-allow-origin as browsers send them, such as http://localhost:3000, "
            "found 'https://a.b/c'; name https://a.b",
        ),
    ],
    ids=["backend", "not verified", "limit", "keys", "origin"],
)
def test_what_cannot_be_served_ends_in_one_line(
    served_artifact: Artifact, options: tuple[str, ...], message: str
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
    lines = [line for line in run.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1 and lines[0].startswith(f"anna-export: {message}"), run.stderr
    # a backend is looked for while the server listens
    assert ('"listening"' in run.stderr) == (options[0] == "--backend")


@dataclass(frozen=True)
class FindsThePort:
    """Refuses the model with whether the server listens while it loads."""

    port: int

    def __call__(self) -> LoadedModel:
        with socket.socket() as client:
            client.settimeout(5)
            refused = client.connect_ex(("127.0.0.1", self.port)) == errno.ECONNREFUSED
        raise InputError("closed" if refused else "open")


@pytest.mark.parametrize(("load_first", "port"), [(True, "closed"), (False, "open")])
def test_a_model_that_must_be_loaded_first_is_refused_before_the_server_listens(
    served_artifact: Artifact, load_first: bool, port: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    with pytest.raises(InputError, match=f"^{port}$"):
        run_server(
            served_artifact,
            ServerConfig("small"),
            FindsThePort(address[1]),
            address,
            load_first=load_first,
        )


def test_a_port_that_is_taken_is_said(served_artifact: Artifact) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"expected to listen on 127\.0\.0\.1 port .*in use"):
            listen("127.0.0.1", taken.getsockname()[1])


def test_an_artifact_that_computes_something_else_than_when_it_was_proved_is_not_served(
    artifact: Artifact, tmp_path: Path
) -> None:
    from anna_export.artifact.evidence import add_evidence
    from anna_export.artifact.folder import open_artifact
    from anna_export.artifact.manifest import PARITY_FILE
    from anna_export.errors import DamagedError
    from anna_export.serve.load_model import ModelLoader
    from anna_export.serve.worker import self_test
    from anna_export.verify.golden import read_golden

    shutil.copytree(artifact.folder, tmp_path / "artifact")
    opened = open_artifact(tmp_path / "artifact")
    golden = read_golden(opened)
    assert len(golden) == 4 and all(text.cosine > 0.999999 for text in golden)
    model = ModelLoader(tmp_path / "artifact")()
    assert self_test(model.encoder, model.golden).backend == "ort"
    # as if another model's weights had been proved
    proof = json.loads((tmp_path / "artifact" / PARITY_FILE).read_text())
    texts = proof["vectors"]["golden"]
    vectors = [text["vector"] for text in texts]
    for text, vector in zip(texts, vectors[1:] + vectors[:1], strict=True):
        text["vector"] = vector
    add_evidence(opened, PARITY_FILE, json.dumps(proof))
    model = ModelLoader(tmp_path / "artifact")()
    with pytest.raises(DamagedError, match=r"expected a cosine of 1\.0000 to a golden vector"):
        self_test(model.encoder, model.golden)


@pytest.mark.slow
def test_verified_artifacts_are_served_where_it_is_required(artifact: Artifact) -> None:
    with running(artifact.folder, "--require-verified") as server:
        assert server.wait_until_ready().embed("a")


@pytest.mark.slow
def test_nothing_beyond_this_machine_is_asked_for(
    served_artifact: Artifact, tmp_path: Path
) -> None:
    offline = Offline(tmp_path)
    with running(served_artifact.folder, environment=offline.environment) as server:
        assert server.wait_until_ready().embed(["a", "b"])
        server.client.get("/info")
    assert offline.requests() == ""
