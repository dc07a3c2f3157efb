"""A server in a process of its own, as a user starts it, and clients that are no library's."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

ROOT = Path(__file__).parents[2]
SERVE = ("-c", "from anna_export.cli import main; main()", "serve")
STUB = ("-m", "tests.serve.stub")
START_SECONDS = 60
ANSWERED = (200, 429, 503, 504)


class Running:
    """A server's process, address and log."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = str(self.wait_for("listening")["url"])
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("{"):
                self.log.append(json.loads(line))

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """Return the log's line of an event, when there are so many."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            lines = [line for line in self.log if line["event"] == event]
            if len(lines) >= count:
                return lines[count - 1]
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"no {event}: {self.lines}")

    @property
    def encoder_pid(self) -> int:
        """The number of the process that computes."""
        (child,) = [
            child
            for child in psutil.Process(self.process.pid).children()
            if "spawn_main" in " ".join(child.cmdline())
        ]
        return child.pid

    def wait_until_ready(self) -> "Running":
        """Wait until requests are taken."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.client.get("/ready").status_code == 200:
                return self
            time.sleep(0.02)
        raise AssertionError(f"not ready: {self.lines}")

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """Send a body as JSON, or bytes as they are."""
        if isinstance(body, bytes):
            return self.client.post(path, content=body, **options)
        return self.client.post(path, json=body, **options)

    def embed(self, texts: Any, **fields: Any) -> Any:
        """Return what /embed says of texts."""
        answer = self.post("/embed", {"inputs": texts, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's values with these labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == name and all(
                f'{key}="{wanted}"' in head for key, wanted in labels.items()
            ):
                total += float(value)
        return total

    def connect(self, receive_bytes: int | None = None) -> socket.socket:
        """Return a bare connection; its buffer for what comes in may be small."""
        where = urlsplit(self.url)
        assert where.hostname is not None
        connection = socket.socket()
        connection.settimeout(30)
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.connect((where.hostname, where.port or 80))
        return connection


Stub = Callable[..., Running]


@contextmanager
def running(
    artifact: Path,
    *options: str,
    program: Sequence[str] = SERVE,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Start a server on a free port and end it afterwards."""
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "train")]
    variables = dict(environment or {})
    paths = [*filter(None, [variables.pop("PYTHONPATH", "")]), *paths]
    process = subprocess.Popen(
        [sys.executable, *program, str(artifact), "--port", "0", *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            **variables,
        },
    )
    try:
        yield Running(process)
    finally:
        process.kill()
        process.wait(10)


def at_once(server: Running, bodies: list[dict[str, Any]], **options: Any) -> list[httpx.Response]:
    """Send bodies at the same time."""

    def send(body: dict[str, Any]) -> httpx.Response:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            return client.post("/v1/embeddings", json=body, **options)

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(send, bodies))


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is so; fail if it takes longer."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
