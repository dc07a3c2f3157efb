"""What every route does around its own work: keys, bodies, deadlines, clients that leave."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
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

# a request's body and its deadline → the answer, and what to say of it in a header or the log
Work = Callable[[bytes, float | None], Awaitable[Response]]


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
        deadline = _deadline(request, started)
        body = await _read(request, service)
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


async def _read(request: Request, service: Service) -> bytes:
    """Read a body.

    Raises:
        Refusal: If it is larger than the limit, or takes too long.
    """
    limit = service.settings.payload_bytes
    kept, size = bytearray(), 0
    try:
        async with asyncio.timeout(service.settings.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    kept += chunk
                else:
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
    return bytes(kept)


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
