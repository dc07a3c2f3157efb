"""One process of serving.py: sends texts to a server and times every answer.

    python -m benchmarks.holds._serving_client JOB.json

JOB holds url, texts, per_request, seconds, and either connections (closed loop: each sends its next
request when the last one is answered) or rate (open loop: requests a second, at times drawn as a
Poisson process; waiting begins when a request should have been sent). The answer is JSON.
"""

import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class Connection:
    """One kept-alive connection, with as little work as HTTP allows."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._where = parts.hostname, parts.port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> int:
        """Send a body to /v1/embeddings and return the status."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._where, limit=1 << 24)
        reader, writer = self._streams
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        lowered = answer.lower()
        at = lowered.index(b"content-length:") + 15
        await reader.readexactly(int(lowered[at : lowered.index(b"\r\n", at)]))
        return int(answer[9:12])


def bodies(job: dict[str, Any]) -> Iterator[bytes]:
    """Give requests without end; no text comes twice in a row of so many."""
    numbers = itertools.count(job.get("first", 0))
    texts: list[str] = job["texts"]
    while True:
        chosen = [
            # another text each time: equal ones in flight would be computed once
            f"{number} {texts[number % len(texts)]}"
            for number in itertools.islice(numbers, job["per_request"])
        ]
        yield json.dumps({"input": chosen, "encoding_format": "base64"}).encode()


async def closed(job: dict[str, Any]) -> list[tuple[float, float, int]]:
    """Return (sent, answered, status) of each request of a closed loop."""
    requests, answers = bodies(job), []
    end = time.perf_counter() + job["seconds"]

    async def ask() -> None:
        connection = Connection(job["url"])
        while (sent := time.perf_counter()) < end:
            status = await connection.post(next(requests))
            answers.append((sent, time.perf_counter(), status))

    await asyncio.gather(*(ask() for _ in range(job["connections"])))
    return answers


async def opened(job: dict[str, Any]) -> list[tuple[float, float, int]]:
    """Return (due, answered, status) of each request of an open loop."""
    requests, answers = bodies(job), []
    drawn = random.Random(job.get("first", 0))
    free: list[Connection] = []

    async def ask(due: float, body: bytes) -> None:
        connection = free.pop() if free else Connection(job["url"])
        status = await connection.post(body)
        answers.append((due, time.perf_counter(), status))
        free.append(connection)

    due = time.perf_counter()
    end = due + job["seconds"]
    asking = []
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asking.append(asyncio.ensure_future(ask(due, next(requests))))
        due += drawn.expovariate(job["rate"])
    await asyncio.gather(*asking)
    return answers


def main() -> None:
    """Send, and print the answers' times."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = asyncio.run(opened(job) if "rate" in job else closed(job))
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
