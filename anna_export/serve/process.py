"""Keeps the process that computes alive, and carries batches to it and vectors back."""

import asyncio
import multiprocessing
import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

from anna_export.serve.log import log
from anna_export.serve.worker import Done, Ready, Served, Unusable, Work, main

# Between deaths with nothing computed in between; the first time it starts again at once.
_PAUSES_SECONDS: Final = (0.0, 1.0, 2.0, 4.0, 8.0)


class EncoderProcess:
    """One process with a model; started again when it dies.

    Its callbacks run on the event loop that `start` was called on.

    Args:
        open_served: What loads the model there; it must be picklable.
        on_ready: Told when the model is loaded and tested.
        on_done: Told of every batch.
        on_lost: Told that the process is gone, with all that it had.
        on_unusable: Told why the model cannot be served.
    """

    def __init__(
        self,
        open_served: Callable[[], Served],
        *,
        on_ready: Callable[[Ready], None],
        on_done: Callable[[Done], None],
        on_lost: Callable[[], None],
        on_unusable: Callable[[str], None],
    ) -> None:
        self._open_served = open_served
        self._on_ready, self._on_done = on_ready, on_done
        self._on_lost, self._on_unusable = on_lost, on_unusable
        self._context = multiprocessing.get_context("spawn")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: Any = None
        self._outgoing: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._deaths = 0  # since it last gave vectors
        self._stopping = False
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The process's number; None where there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, and listen to it."""
        self._loop = asyncio.get_running_loop()
        ours, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=main, args=(theirs, self._open_served), name="anna-encoder", daemon=True
        )
        self._process.start()
        theirs.close()
        self._outgoing = queue.SimpleQueue()
        # a pipe that is full, or a process that has stopped, must not stop the event loop
        threading.Thread(target=_send_all, args=(ours, self._outgoing), daemon=True).start()
        threading.Thread(target=self._receive_all, args=(ours, self._loop), daemon=True).start()

    def send(self, work: Work) -> None:
        """Give it a batch; its vectors or its loss are told by the callbacks."""
        self._outgoing.put(work)

    def kill(self, why: str) -> None:
        """End the process as a crash would; it is started again."""
        log("encoder killed", why=why)
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """End the process for good."""
        self._stopping = True
        self._outgoing.put(None)
        if self._process is not None:
            self._process.terminate()
            self._process.join(5)
            if self._process.is_alive():
                self._process.kill()

    def _receive_all(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        message: Any = None
        try:
            while True:
                message = connection.recv()
                loop.call_soon_threadsafe(self._take, message)
        except (EOFError, OSError):
            pass
        if not self._stopping and not isinstance(message, Unusable):
            loop.call_soon_threadsafe(self._restart)

    def _take(self, message: Ready | Done | Unusable) -> None:
        match message:
            case Ready():
                self._on_ready(message)
            case Done():
                # not when it is ready: a text that kills it is sent again and again
                self._deaths = 0
                self._on_done(message)
            case Unusable():
                self._on_unusable(message.message)

    def _restart(self) -> None:
        self._outgoing.put(None)
        self._process.join(5)
        pause = _PAUSES_SECONDS[min(self._deaths, len(_PAUSES_SECONDS) - 1)]
        log("encoder died", exit_code=self._process.exitcode, starts_in_seconds=pause)
        self._deaths += 1
        self.restarts += 1
        self._on_lost()
        assert self._loop is not None
        self._loop.call_later(pause, lambda: None if self._stopping else self.start())


def _send_all(connection: Connection, outgoing: "queue.SimpleQueue[Work | None]") -> None:
    try:
        while (work := outgoing.get()) is not None:
            connection.send(work)
    except (BrokenPipeError, OSError):  # the one who receives finds out as well
        return
