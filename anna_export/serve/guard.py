"""What surrounds every route's handler: keys, bodies, deadlines, limits, clients that leave."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from anna_export.serve.log import log
from anna_export.serve.refusal import Kind, Refusal
from anna_export.serve.service import EmbeddingService

DEADLINE_HEADER: Final = "x-deadline-ms"
# A body over the limit is read up to so many times the limit and thrown away: a client that is
# still sending does not read the answer.
_DISCARDED_FACTOR: Final = 8
_CLIENT_LEFT: Final = 499
# Bodies in memory at once take no more of it than so many of the largest.
_LARGEST_BODIES: Final = 64


@dataclass(frozen=True, slots=True)
class Call:
    """A request as a handler gets it.

    Args:
        body: Its bytes.
        deadline: `time.perf_counter` when the client stops waiting; None for never.
        path: What stands in the route's {NAME}s.
    """

    body: bytearray
    deadline: float | None = None
    path: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[EmbeddingService, Call], Awaitable[Response]]


def answer_json(value: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    """Return JSON; numpy arrays are lists of numbers."""
    content = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status, headers, "application/json")


def answer_refusal(request: Request, refusal: Refusal) -> Response:
    """Return a refusal in the shape of its route: OpenAI's under /v1, or TEI's."""
    openai = request.url.path.startswith("/v1/")
    status = refusal.status(openai=openai)
    return answer_json(refusal.body(openai=openai), refusal.headers, status)


async def respond(
    service: EmbeddingService, request: Request, route: str, handler: Handler
) -> Response:
    """Return the handler's answer or a refusal; count, time and log the request by its route.

    The handler is cancelled when the client leaves.
    """
    started = time.perf_counter()
    service.active += 1
    try:
        _require_key(request, service.config.api_keys)
        if service.active > (limit := service.config.max_requests):
            service.metrics.rejected.labels(reason="requests").inc()
            raise Refusal.overloaded(f"{limit:,} requests, the limit, are being answered", 1)
        deadline = _deadline(request, started)
        async with _body(request, service) as body:
            call = Call(body, deadline, request.path_params)
            response = await _unless_left(request, handler(service, call))
    except Refusal as refusal:
        response = answer_refusal(request, refusal)
    except ClientDisconnect:  # in the middle of its body
        response = Response(status_code=_CLIENT_LEFT)
    finally:
        service.active -= 1
    seconds = time.perf_counter() - started
    service.metrics.requests.labels(route=route, code=str(response.status_code)).inc()
    service.metrics.duration.labels(route=route).observe(seconds)
    response.headers["x-total-time"] = str(round(seconds * 1e3))
    log("request", route=route, status=response.status_code, ms=round(seconds * 1e3, 1))
    return response


def _require_key(request: Request, keys: tuple[str, ...]) -> None:
    """Refuse a request without one of the keys.

    Raises:
        Refusal: If there are keys and it has none of them.
    """
    if not keys:
        return
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = ""
    # compared with each, so that the time taken does not depend on which is right
    matches = [hmac.compare_digest(key.encode(), valid.encode()) for valid in keys]
    if not any(matches):
        raise Refusal(
            Kind.UNAUTHORIZED,
            "expected the header Authorization: Bearer KEY with one of the server's keys, found "
            + ("another" if key else "none"),
            "invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _deadline(request: Request, started: float) -> float | None:
    value = request.headers.get(DEADLINE_HEADER)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise Refusal.invalid(
            f"expected whole milliseconds in {DEADLINE_HEADER}, found {value[:40]!r}", None
        )
    return started + int(value) / 1e3


@contextlib.asynccontextmanager
async def _body(request: Request, service: EmbeddingService) -> AsyncIterator[bytearray]:
    """Read a body, and count its bytes while it is in memory.

    Raises:
        Refusal: If it is larger than the limit, takes too long, or all bodies are too large.
    """
    body = bytearray()
    try:
        await _read(request, service, body)
        yield body
    finally:
        service.body_bytes -= len(body)


async def _read(request: Request, service: EmbeddingService, body: bytearray) -> None:
    limit, seconds = service.config.payload_bytes, service.config.body_seconds
    total_limit = _LARGEST_BODIES * limit
    size, fits = 0, True
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                fits = fits and service.body_bytes + len(chunk) <= total_limit
                if size <= limit and fits:
                    body += chunk
                    service.body_bytes += len(chunk)
                else:
                    service.body_bytes -= len(body)
                    body.clear()
                if size > _DISCARDED_FACTOR * limit:
                    break
    except TimeoutError:
        raise Refusal(
            Kind.SLOW,
            f"expected a body within {seconds:g} s, found {size:,} bytes of it; send it faster",
            "slow_body",
            headers={"Connection": "close"},
        ) from None
    if size > limit:
        service.metrics.rejected.labels(reason="payload").inc()
        raise Refusal.too_large(
            f"expected a body of at most {limit:,} bytes, found more; send the texts in several "
            "requests"
        )
    if not fits:
        service.metrics.rejected.labels(reason="bodies").inc()
        raise Refusal.overloaded(f"{total_limit:,} bytes of requests, the limit, are held", 1)


async def _unless_left(request: Request, answer: Awaitable[Response]) -> Response:
    """Wait for the answer; cancel it when the client leaves first."""
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        answering.cancel()
        await asyncio.wait((answering,))
        return Response(status_code=_CLIENT_LEFT)
    finally:
        leaving.cancel()
        answering.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
