"""A process that embeds for bench: opened once, timed when its turn comes."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import numpy as np

from anna_export.bench.opening import Opened
from anna_export.errors import AnnaError, InputError


@dataclass(frozen=True, slots=True)
class BaselineInfo:
    """What a process embeds with."""

    name: str
    compute: str


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Texts that arrive at times, in seconds from the start; those that wait are taken together."""

    texts: list[str]
    due: list[float]
    most: int  # texts at once


class EmbedProcess:
    """A process with the artifact or a baseline.

    Args:
        opening: What opens it there; it must be picklable.

    Raises:
        AnnaError: If it cannot be opened, in its own words.
    """

    def __init__(self, opening: Callable[[], Opened]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs, opening), daemon=True)
        self._process.start()
        theirs.close()
        self.info: BaselineInfo = self._receive()

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Return (N, D) vectors."""
        vectors: np.ndarray = self._ask(("vectors", list(texts)))
        return vectors

    def seconds(self, calls: Sequence[Sequence[str]], least: float) -> list[float]:
        """Time calls in turn, again from the first, until so many seconds are over."""
        seconds: list[float] = self._ask(("seconds", [list(texts) for texts in calls], least))
        return seconds

    def latencies(self, arrivals: Arrivals) -> list[float]:
        """Return the seconds from each text's arrival to its vector."""
        latencies: list[float] = self._ask(("latencies", arrivals))
        return latencies

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.join(5)

    def _ask(self, question: Any) -> Any:
        self._connection.send(question)
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join(5)
            raise InputError(
                f"expected a process that answers, found it dead with exit code "
                f"{self._process.exitcode}"
            ) from None
        if isinstance(answer, AnnaError):
            raise answer
        return answer


def _main(connection: Connection, opening: Callable[[], Opened]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        opened = opening()
        connection.send(BaselineInfo(opened.name, opened.compute))
        while True:
            connection.send(_answer(opened, connection.recv()))
    except AnnaError as error:
        connection.send(error)
    except (EOFError, BrokenPipeError):
        return


def _answer(opened: Opened, question: Any) -> Any:
    match question:
        case ("vectors", texts):
            return np.asarray(opened.embed(texts), dtype=np.float32)
        case ("seconds", calls, least):
            return _seconds(opened, calls, least)
        case ("latencies", arrivals):
            return _latencies(opened, arrivals)
    raise AssertionError(question)


def _seconds(opened: Opened, calls: Sequence[Sequence[str]], least: float) -> list[float]:
    seconds: list[float] = []
    while sum(seconds) < least or len(seconds) < len(calls):
        texts = calls[len(seconds) % len(calls)]
        started = time.perf_counter()
        opened.embed(texts)
        seconds.append(time.perf_counter() - started)
    return seconds


def _latencies(opened: Opened, arrivals: Arrivals) -> list[float]:
    latencies: list[float] = []
    start = time.perf_counter()
    while (at := len(latencies)) < len(arrivals.due):
        elapsed = time.perf_counter() - start
        if elapsed < arrivals.due[at]:
            time.sleep(arrivals.due[at] - elapsed)
            elapsed = time.perf_counter() - start
        waiting = [due for due in arrivals.due[at : at + arrivals.most] if due <= elapsed]
        texts = arrivals.texts[at : at + max(1, len(waiting))]
        opened.embed(texts)
        done = time.perf_counter() - start
        latencies += [done - due for due in arrivals.due[at : at + len(texts)]]
    return latencies
