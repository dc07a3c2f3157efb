"""The server against its own encoder, under load and over it.

    python -m benchmarks.holds.serving  five rounds; half an hour
    python -m benchmarks.holds.serving --quick  two rounds of short ones; 5 minutes

A random model of 164 M parameters beside its embedding in int8 on 2 cores, docstrings of a mean of
64 tokens or more, client and server on the same machine. The bare encoder and the saturated server
take turns. Overload: single texts at times drawn as a Poisson process, waiting counted from when a
request should have been sent.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from anna_export.artifact.folder import open_artifact
from benchmarks.lib.record import Figure, Results, main, python_module, say
from benchmarks.lib.small_model import write_small_model
from demo.corpus import collect_pairs, source_files, source_folders

CORES = 2
FOLDER = Path("build/serving")
TEXTS, MOST_TOKENS, LEAST_MEAN = 2000, 256, 64
BATCHED = {"connections": 6, "per_request": 32}
SINGLE = {"connections": 64, "per_request": 1}
LATENCY_RATIO, REJECTION_SECONDS, SHARE = 1.5, 0.05, 0.9
MEMORY_REQUESTS = 100_000
MEMORY_GROWTH = 1.1
LIBRARIES = ("starlette", "uvicorn", "httptools", "orjson", "pydantic")
_COMMAND = (sys.executable, "-c", "from anna_export.cli import main; main()")


def measure(arguments: Namespace) -> Results:
    """Run the benchmark."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    rounds, seconds = (2, 10.0) if arguments.quick else (5, 20.0)
    artifact = _artifact()
    texts = _texts(artifact)
    results = Results(samples={"libraries": {name: version(name) for name in LIBRARIES}})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        most = _throughput(artifact, texts, folder, rounds, seconds, results)
        _overload(artifact, texts, folder, rounds, seconds, most, results)
        if arguments.quick:
            results.skip("memory over 100,000 requests", "left out by --quick")
        else:
            _memory(artifact, folder, results)
    return results


def _artifact() -> Path:
    """Return the int8 artifact, made the first time."""
    artifact = FOLDER / "artifact"
    if not artifact.exists():
        say("writing and exporting the model, only once")
        write_small_model(FOLDER / "base")
        options = ["--model", str(FOLDER / "base"), "--int8", "--out", str(artifact), "--no-verify"]
        options += ["--max-tokens", str(MOST_TOKENS * 2)]
        subprocess.run([*_COMMAND, *options], check=True)
    return artifact


def _texts(artifact: Path) -> list[str]:
    """Return docstrings, cut at MOST_TOKENS, of a mean of LEAST_MEAN tokens or more."""
    tokeniser = open_artifact(artifact).tokeniser()
    pairs = collect_pairs(source_files(source_folders()), TEXTS)
    documents = tokeniser.truncate([pair.document for pair in pairs], MOST_TOKENS)
    random.Random(0).shuffle(documents)
    lengths = [len(ids) for ids in tokeniser.ids(documents)]
    mean = statistics.fmean(lengths)
    say(f"{len(documents)} texts of {min(lengths)} to {max(lengths)} tokens, {mean:.0f} on average")
    assert mean >= LEAST_MEAN, mean
    return documents


@contextmanager
def _server(artifact: Path, log: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Start a server, and give its address and process."""
    with log.open("w") as file:
        command = [*_COMMAND, "serve", str(artifact), "--port", "0", *options]
        process = subprocess.Popen(command, stderr=file, stdout=subprocess.DEVNULL)
        try:
            url = ""
            while not url:
                time.sleep(0.1)
                lines = [json.loads(line) for line in log.read_text().splitlines() if "{" in line]
                url = next((line["url"] for line in lines if line["event"] == "listening"), "")
                assert process.poll() is None, log.read_text()
            while httpx.get(f"{url}/ready", trust_env=False).status_code != 200:
                time.sleep(0.1)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(30)


def _ask(folder: Path, url: str, texts: list[str], **job: Any) -> list[list[float]]:
    """Run a client and return (sent, answered, status) of each request."""
    path = folder / "job.json"
    path.write_text(json.dumps({"url": url, "texts": texts, **job}), encoding="utf-8")
    client = python_module("holds._serving_client", path)
    run = subprocess.run(client, stdout=subprocess.PIPE, check=True)
    answers: list[list[float]] = json.loads(run.stdout)
    return answers


def _texts_per_second(answers: list[list[float]], per_request: int) -> float:
    """Count what was answered from the first second on, where the client starts."""
    first = min(sent for sent, _, _ in answers) + 1
    ends = [end for _, end, status in answers if status == 200 and end > first]
    return len(ends) * per_request / (max(ends) - first)


def _throughput(
    artifact: Path, texts: list[str], folder: Path, rounds: int, seconds: float, results: Results
) -> float:
    """Compare the server with the bare encoder, and return its texts a second."""
    bare, served, single = [], [], []
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}: the bare encoder")
        worker = python_module("holds._serving_bare", artifact, folder / "texts.json", seconds)
        run = subprocess.run(worker, stdout=subprocess.PIPE, check=True)
        bare.append(float(json.loads(run.stdout)))
        say(f"round {number + 1} of {rounds}: the server, {bare[-1]:.1f} texts/s without it")
        with _server(artifact, folder / "log", "--max-queue-seconds", "60") as (url, _):
            _ask(folder, url, texts, seconds=3, first=10**6, **BATCHED)
            answers = _ask(folder, url, texts, seconds=seconds, **BATCHED)
            served.append(_texts_per_second(answers, BATCHED["per_request"]))
            short = [text[:24] for text in texts]
            answers = _ask(folder, url, short, seconds=seconds / 2, first=10**7, **SINGLE)
            single.append(_texts_per_second(answers, 1))
        say(f"{served[-1]:.1f} texts/s in the server, {served[-1] / bare[-1]:.2f} of it")
    shares = [served_rate / bare_rate for served_rate, bare_rate in zip(served, bare, strict=True)]
    results.samples["throughput"] = {"bare": bare, "served": served, "short single texts": single}
    share = statistics.median(shares)
    results.figures += [
        Figure(
            "throughput at saturation over the bare encoder's",
            share,
            "x",
            f">= {SHARE}",
            share >= SHARE,
            (min(shares), max(shares)),
        ),
        _printed("the bare encoder: texts a second", bare),
        _printed("the server, 32 texts a request: texts a second", served),
        _printed("the server, one short text a request: texts a second", single),
    ]
    return statistics.median(served)


def _printed(name: str, values: list[float]) -> Figure:
    spread = (min(values), max(values))
    return Figure(name, statistics.median(values), "texts/s", "printed", True, spread)


def _overload(
    artifact: Path,
    texts: list[str],
    folder: Path,
    rounds: int,
    seconds: float,
    most: float,
    results: Results,
) -> None:
    """Time accepted and refused requests at 0.9 and 2 times as many texts as the server can do."""
    rows: list[dict[str, float]] = []
    with _server(artifact, folder / "log") as (url, _):
        _ask(folder, url, texts, seconds=5, first=10**6, connections=24, per_request=1)
        for number in range(rounds):
            first = 10**7 * (number + 1)
            row: dict[str, float] = {}
            for load in (0.9, 2.0):
                first += 10**6
                answers = _ask(
                    folder,
                    url,
                    texts,
                    seconds=seconds,
                    first=first,
                    rate=load * most,
                    per_request=1,
                )
                accepted = [end - due for due, end, status in answers if status == 200]
                refused = [end - due for due, end, status in answers if status == 429]
                strange = [status for *_, status in answers if status not in (200, 429)]
                assert not strange, strange
                row |= {
                    f"{load} accepted": len(accepted) / len(answers),
                    f"{load} p50": float(np.percentile(accepted, 50)),
                    f"{load} p99": float(np.percentile(accepted, 99)),
                    f"{load} refused p99": float(np.percentile(refused, 99)) if refused else 0.0,
                }
            rows.append(row)
            say(", ".join(f"{name} {value:.3f}" for name, value in row.items()))
    results.samples["overload"] = rows
    ratios = [row["2.0 p99"] / row["0.9 p99"] for row in rows]
    refusals = [row["2.0 refused p99"] for row in rows]
    ratio, refusal = statistics.median(ratios), statistics.median(refusals)
    results.figures += [
        Figure(
            "p99 of accepted requests at twice the load the server can do over that at 0.9",
            ratio,
            "x",
            f"<= {LATENCY_RATIO}",
            ratio <= LATENCY_RATIO,
            (min(ratios), max(ratios)),
        ),
        Figure(
            "p99 of refusals at twice that load",
            refusal * 1e3,
            "ms",
            f"<= {REJECTION_SECONDS * 1e3:.0f}",
            refusal <= REJECTION_SECONDS,
            (min(refusals) * 1e3, max(refusals) * 1e3),
        ),
        Figure(
            "p99 of requests at 0.9",
            statistics.median(row["0.9 p99"] for row in rows) * 1e3,
            "ms",
            "printed",
            True,
        ),
        Figure(
            "share of requests that is accepted at twice that load",
            statistics.median(row["2.0 accepted"] for row in rows),
            "",
            "printed",
            True,
        ),
    ]


def _memory(artifact: Path, folder: Path, results: Results) -> None:
    """Watch both processes over many requests of one short text."""
    words = [f"a{number}" for number in range(1000)]
    with _server(artifact, folder / "log", "--max-queue-seconds", "60") as (url, pid):
        parts = [psutil.Process(pid), *psutil.Process(pid).children()]

        def resident() -> int:
            return sum(part.memory_info().rss for part in parts)

        sent, resident_bytes = 0, []
        while sent < MEMORY_REQUESTS:
            answers = _ask(folder, url, words, seconds=20, first=sent, **SINGLE)
            assert all(status == 200 for *_, status in answers)
            sent += len(answers)
            resident_bytes.append(resident())
            say(f"{sent:,} requests: {resident_bytes[-1] / 2**20:.0f} MiB")
        assert httpx.get(f"{url}/ready", trust_env=False).status_code == 200
    results.samples["memory"] = {"requests": sent, "resident_bytes": resident_bytes}
    # the first fifth fills caches
    early = resident_bytes[len(resident_bytes) // 5]
    growth = resident_bytes[-1] / early
    results.figures.append(
        Figure(
            f"memory after {MEMORY_REQUESTS:,} requests over that after a fifth of them",
            growth,
            "x",
            f"<= {MEMORY_GROWTH}",
            growth <= MEMORY_GROWTH,
        )
    )


if __name__ == "__main__":
    sys.exit(main("serving", measure, quick="Two short rounds."))
