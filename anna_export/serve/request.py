"""What every route does around its own work: keys, bodies, deadlines, clients that leave."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from anna_export.serve.log import log
from anna_export.serve.refusal import Kind, Refusal
from anna_export.serve.service import Service

DEADLINE_HEADER: Final = "x-deadline-ms"
# A body over the limit is read to its end and forgotten, up to so many times the limit: a client
# that is still sending does not read the answer.
_DRAINED: Final = 8
_CLIENT_LEFT: Final = 499
# Bodies that are held at once take no more memory than so many of the largest.
_LARGEST_BODIES: Final = 64

# a request's body and its deadline → the answer, and what to say of it in a header or the log
Work = Callable[[bytearray, float | None], Awaitable[Response]]


def is_openai(path: str) -> bool:
    """Say whether a route answers in OpenAI's shapes, or else in TEI's."""
    return path.startswith("/v1/")


def answer_json(value: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    """Return JSON; numpy arrays are lists of numbers."""
    content = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status, headers, "application/json")


def answer_refusal(request: Request, refusal: Refusal) -> Response:
    """Return a refusal in the shape of its route."""
    openai = is_openai(request.url.path)
    status = refusal.status(openai=openai)
    return answer_json(refusal.body(openai=openai), refusal.headers, status)


async def respond(service: Service, request: Request, work: Work) -> Response:
    """Answer one request: its work's answer, or why there is none.

    A client that leaves takes its request along.
    """
    started = time.perf_counter()
    route = request.url.path
    service.active += 1
    try:
        require_key(request, service.settings.api_keys)
        _require_room(service)
        deadline = _deadline(request, started)
        async with _body(request, service) as body:
            response = await _unless_left(request, work(body, deadline))
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


def require_key(request: Request, keys: tuple[str, ...]) -> None:
    """Refuse a request without one of the keys.

    Raises:
        Refusal: If there are keys and it has none of them.
    """
    if not keys:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = ""
    # each one is compared, in a time that tells nothing
    found = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]
    if not any(found):
        raise Refusal(
            Kind.UNAUTHORIZED,
            "expected the header Authorization: Bearer KEY with one of the server's keys, found "
            + ("another" if given else "none"),
            "invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _deadline(request: Request, started: float) -> float | None:
    told = request.headers.get(DEADLINE_HEADER)
    if told is None:
        return None
    if not (told.isascii() and told.isdigit() and len(told) <= 9):
        raise Refusal.invalid(
            f"expected whole milliseconds in {DEADLINE_HEADER}, found {told[:40]!r}", None
        )
    return started + int(told) / 1e3


def _require_room(service: Service) -> None:
    """Refuse a request where as many are at work as may be.

    Raises:
        Refusal: If so.
    """
    most = service.settings.max_requests
    if service.active > most:
        service.metrics.rejected.labels(reason="requests").inc()
        raise Refusal.overloaded(f"{most:,} requests, the limit, are being answered", 1)


@contextlib.asynccontextmanager
async def _body(request: Request, service: Service) -> AsyncIterator[bytearray]:
    """Read a body, and count it while it is held.

    Raises:
        Refusal: If it is larger than the limit, takes too long, or too much of others is held.
    """
    kept = bytearray()
    try:
        await _read(request, service, kept)
        yield kept
    finally:
        service.body_bytes -= len(kept)


async def _read(request: Request, service: Service, kept: bytearray) -> None:
    limit = service.settings.payload_bytes
    most = _LARGEST_BODIES * limit
    size, fits = 0, True
    try:
        async with asyncio.timeout(service.settings.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                fits = fits and service.body_bytes + len(chunk) <= most
                if size <= limit and fits:
                    kept += chunk
                    service.body_bytes += len(chunk)
                else:
                    service.body_bytes -= len(kept)
                    kept.clear()
                if size > _DRAINED * limit:
                    break
    except TimeoutError:
        raise Refusal(
            Kind.SLOW,
            f"expected a body within {service.settings.body_seconds:g} s, found {size:,} bytes of "
            "it; send it faster",
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
        raise Refusal.overloaded(f"{most:,} bytes of requests, the limit, are held", 1)


async def _unless_left(request: Request, work: Awaitable[Response]) -> Response:
    """Do the work while the client is there."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        doing.cancel()
        await asyncio.wait((doing,))
        return Response(status_code=_CLIENT_LEFT)
    finally:
        leaving.cancel()
        doing.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
