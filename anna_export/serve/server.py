"""Runs a server until a signal, and then answers the requests in flight."""

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from anna_export.artifact.folder import Artifact
from anna_export.errors import InputError
from anna_export.serve.app import build_app
from anna_export.serve.config import ServerConfig
from anna_export.serve.log import log
from anna_export.serve.service import EmbeddingService
from anna_export.serve.worker import LoadedModel

_POLL_SECONDS = 0.05
# How long clients may take to read their last answer after the time to drain.
_ANSWER_SECONDS = 2.0


class _Server(uvicorn.Server):
    """uvicorn's server, whose signals are this module's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; on port 0, on any that is free.

    Raises:
        InputError: If the address is taken, or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with the protocol named, asyncio sends every answer at once; else its end waits 40 ms
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except (OSError, OverflowError) as error:
        listening.close()
        raise InputError(
            f"expected to listen on {host} port {port}, found: {error}; choose another `host` or "
            "`port`"
        ) from None
    return listening


def run_server(
    artifact: Artifact,
    config: ServerConfig,
    load_model: Callable[[], LoadedModel],
    address: tuple[str, int],
    *,
    load_first: bool = False,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C.

    Args:
        artifact: The model.
        config: The server's limits.
        load_model: Loads the model in the process that computes.
        address: Host and port where requests come in.
        load_first: Listen there when the model is loaded, and not while it loads.

    Raises:
        InputError: If the model cannot be served, or not there.
        KeyboardInterrupt: After Ctrl-C, when all that was begun is done.
    """
    _raise_file_limit()
    stopped_by = asyncio.run(_serve(artifact, config, load_model, address, load_first))
    if isinstance(stopped_by, str):
        raise InputError(stopped_by)
    if stopped_by is signal.SIGINT:
        raise KeyboardInterrupt


async def _serve(
    artifact: Artifact,
    config: ServerConfig,
    load_model: Callable[[], LoadedModel],
    address: tuple[str, int],
    load_first: bool,
) -> signal.Signals | str:
    """Serve, and return the signal that ended it, or why the model cannot be served."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[signal.Signals | str] = loop.create_future()

    def end(reason: signal.Signals | str) -> None:
        if not ended.done():
            ended.set_result(reason)

    service = EmbeddingService(artifact, config, load_model, on_unusable=end)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    with contextlib.closing(service):
        listening = None if load_first else listen(*address)
        service.process.start()
        if listening is None:
            loaded = asyncio.ensure_future(service.loaded.wait())
            await asyncio.wait((loaded, ended), return_when=asyncio.FIRST_COMPLETED)
            loaded.cancel()
            if ended.done():
                return ended.result()
            listening = listen(*address)
        return await _answer_until(ended, service, listening)


async def _answer_until(
    ended: "asyncio.Future[signal.Signals | str]",
    service: EmbeddingService,
    listening: socket.socket,
) -> signal.Signals | str:
    """Answer requests until there is a reason to end, and return it."""
    uvicorn_config = uvicorn.Config(
        build_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        lifespan="off",
    )
    server = _Server(uvicorn_config)
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    host, port = listening.getsockname()[:2]
    log("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")
    await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
    result = ended.result() if ended.done() else "the server ended by itself"
    await _stop(service, server, serving, drain=not isinstance(result, str))
    return result


async def _stop(
    service: EmbeddingService, server: _Server, serving: "asyncio.Future[None]", *, drain: bool
) -> None:
    """Take no more requests, answer those in flight where `drain` says so, and end the server."""
    loop, seconds = asyncio.get_running_loop(), service.config.drain_seconds
    service.draining = True
    end_at = loop.time() + seconds
    if drain:
        log("draining", requests=service.active, seconds=seconds)
        await _wait_for_answers(service, end_at)
    # requests that are left are answered 503
    unfinished = service.active
    service.close()
    await _wait_for_answers(service, loop.time() + _ANSWER_SECONDS)
    server.should_exit = True
    server.force_exit = service.active > 0
    # a client may still be reading its answer
    await asyncio.wait((serving,), timeout=max(_ANSWER_SECONDS, end_at - loop.time()))
    log("stopped", unfinished=unfinished)


async def _wait_for_answers(service: EmbeddingService, end_at: float) -> None:
    """Wait until every request is answered, or until `end_at` on the loop's clock."""
    loop = asyncio.get_running_loop()
    while service.active and loop.time() < end_at:
        await asyncio.sleep(_POLL_SECONDS)


def _raise_file_limit() -> None:
    """Allow as many connections as the machine does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
