"""Keeps the process that computes alive, and carries batches to it and vectors back."""

import asyncio
import multiprocessing
import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

from anna_export.serve.log import log
from anna_export.serve.worker import BatchResult, EncodeBatch, LoadedModel, Ready, Unusable, main

# Before each start after a death with no batch since the last one; the first start is at once.
_RESTART_PAUSES_SECONDS: Final = (0.0, 1.0, 2.0, 4.0, 8.0)


class EncoderProcess:
    """One process with a model; started again when it dies.

    The callbacks run on the event loop that `start` was called on.

    Args:
        load_model: Loads the model in the process; it must be picklable.
        on_ready: Called when the model is loaded and tested.
        on_result: Called with the vectors of every batch.
        on_lost: Called when the process is gone, with all batches it had.
        on_unusable: Called with the reason why the model cannot be served.
    """

    def __init__(
        self,
        load_model: Callable[[], LoadedModel],
        *,
        on_ready: Callable[[Ready], None],
        on_result: Callable[[BatchResult], None],
        on_lost: Callable[[], None],
        on_unusable: Callable[[str], None],
    ) -> None:
        self._load_model = load_model
        self._on_ready, self._on_result = on_ready, on_result
        self._on_lost, self._on_unusable = on_lost, on_unusable
        self._context = multiprocessing.get_context("spawn")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: Any = None
        self._outgoing: queue.SimpleQueue[EncodeBatch | None] = queue.SimpleQueue()
        self._deaths = 0  # since its last batch
        self._stopping = False
        self.restarts = 0

    def start(self) -> None:
        """Start the process, and listen to it."""
        self._loop = asyncio.get_running_loop()
        ours, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=main, args=(theirs, self._load_model), name="anna-encoder", daemon=True
        )
        self._process.start()
        theirs.close()
        self._outgoing = queue.SimpleQueue()
        # a pipe that is full, or a process that has stopped, must not stop the event loop
        threading.Thread(target=_send_all, args=(ours, self._outgoing), daemon=True).start()
        threading.Thread(target=self._receive_all, args=(ours, self._loop), daemon=True).start()

    def send(self, batch: EncodeBatch) -> None:
        """Give it a batch; `on_result` or `on_lost` follows."""
        self._outgoing.put(batch)

    def kill(self, reason: str) -> None:
        """End the process as a crash would; it is started again."""
        log("encoder killed", why=reason)
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
                loop.call_soon_threadsafe(self._dispatch, message)
        except (EOFError, OSError):
            pass
        if not self._stopping and not isinstance(message, Unusable):
            loop.call_soon_threadsafe(self._restart)

    def _dispatch(self, message: Ready | BatchResult | Unusable) -> None:
        match message:
            case Ready():
                self._on_ready(message)
            case BatchResult():
                # not at Ready: a text that kills the process may come again and again
                self._deaths = 0
                self._on_result(message)
            case Unusable():
                self._on_unusable(message.message)

    def _restart(self) -> None:
        self._outgoing.put(None)
        self._process.join(5)
        pause = _RESTART_PAUSES_SECONDS[min(self._deaths, len(_RESTART_PAUSES_SECONDS) - 1)]
        log("encoder died", exit_code=self._process.exitcode, starts_in_seconds=pause)
        self._deaths += 1
        self.restarts += 1
        self._on_lost()
        assert self._loop is not None
        self._loop.call_later(pause, lambda: None if self._stopping else self.start())


def _send_all(connection: Connection, outgoing: "queue.SimpleQueue[EncodeBatch | None]") -> None:
    try:
        while (batch := outgoing.get()) is not None:
            connection.send(batch)
    except (BrokenPipeError, OSError):  # the receiving thread sees the same, and restarts
        return
