"""The routes: OpenAI's under /v1, text-embeddings-inference's, and those for whoever runs it."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from anna_export.machine.versions import installed
from anna_export.serve.guard import Call, answer_json, answer_refusal, respond
from anna_export.serve.openapi import Endpoint, openapi_document
from anna_export.serve.refusal import Kind, Refusal
from anna_export.serve.schema import OpenAIRequest, TeiRequest, TokenizeRequest, read_body
from anna_export.serve.service import Answer, EmbeddingService
from anna_export.serve.vector_formats import encode_json, integer_limit
from anna_export.spec import PoolingMode

# TEI's words.
_POOLING: Final = {
    PoolingMode.LAST: "last_token",
    PoolingMode.MEAN: "mean",
    PoolingMode.CLS: "cls",
}


def build_app(service: EmbeddingService) -> ASGIApp:
    """Return the application over a service."""
    document = openapi_document(ENDPOINTS)

    async def openapi(request: Request) -> Response:
        return JSONResponse(document)

    routes = [Route("/openapi.json", openapi)]
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("}", ":path}")  # a model's name may hold slashes
        route = Route(path, _answer(service, endpoint), methods=[endpoint.method])
        route.methods = {endpoint.method}  # without the HEAD that Starlette adds to GET
        routes.append(route)
    handlers: Any = {HTTPException: _no_route}
    app = Starlette(routes=routes, exception_handlers=handlers)
    if not service.config.cors_allow_origins:
        return app
    # around the application, so that a page may read its every answer, errors too
    return CORSMiddleware(
        app,
        allow_origins=service.config.cors_allow_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=("*",),
        allow_private_network=True,  # of a page elsewhere that is let in
    )


def _answer(
    service: EmbeddingService, endpoint: Endpoint
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        if endpoint.guarded:
            return await respond(service, request, endpoint.path, endpoint.handler)
        return await endpoint.handler(service, Call(bytearray()))

    return answer


async def _no_route(request: Request, error: HTTPException) -> Response:
    kind = Kind.NOT_ALLOWED if error.status_code == 405 else Kind.NOT_FOUND
    message = f"expected a route of /openapi.json, found {request.method} {request.url.path}"
    headers = dict(error.headers or {})
    return answer_refusal(request, Refusal(kind, message, "not_found", headers=headers))


async def embeddings(service: EmbeddingService, call: Call) -> Response:
    """OpenAI's embeddings: one vector for each input, and the token usage."""
    request = read_body(OpenAIRequest, call.body)
    _require_model(service, request.model)
    answer = await service.embed(request, call.deadline)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": encode_json(vector, request.encoding_format),
        }
        for index, vector in enumerate(answer.vectors)
    ]
    usage = {
        "prompt_tokens": answer.texts.tokens,
        "total_tokens": answer.texts.tokens,
        "prompt_tokens_details": {"cached_tokens": answer.texts.cached_tokens},
    }
    name = service.config.model_name
    body = {"object": "list", "data": data, "model": name, "usage": usage}
    return answer_json(body, _headers(answer))


async def embed(service: EmbeddingService, call: Call) -> Response:
    """TEI's embeddings: a list of vectors."""
    answer = await service.embed(read_body(TeiRequest, call.body), call.deadline)
    return answer_json(list(answer.vectors), _headers(answer))


async def tokenize(service: EmbeddingService, call: Call) -> Response:
    """TEI's tokens of each text, after the prompt that the body names."""
    return answer_json(await service.tokens(read_body(TokenizeRequest, call.body)))


async def models(service: EmbeddingService, call: Call) -> Response:
    """OpenAI's list of models, which holds the one served."""
    return answer_json({"object": "list", "data": [_model(service)]})


async def model(service: EmbeddingService, call: Call) -> Response:
    """OpenAI's description of one model, by its name or its artifact_id."""
    if not call.path["model"]:  # /v1/models/
        return await models(service, call)
    _require_model(service, call.path["model"])
    return answer_json(_model(service))


async def info(service: EmbeddingService, call: Call) -> Response:
    """TEI's description of the model and of the limits, with prompts and parity."""
    manifest, config = service.artifact.manifest, service.config
    ready = service.scheduler.ready
    value = {
        "model_id": config.model_name,
        "model_sha": manifest.artifact_id,
        "model_dtype": str(manifest.precision),
        "model_type": {"embedding": {"pooling": _POOLING[manifest.spec.head.pooling]}},
        "dimensions": manifest.spec.embedding_dim,
        "normalized": service.normalizes,
        "max_input_length": manifest.framing.max_tokens,
        "max_batch_tokens": service.scheduler.batch_limits.tokens,
        "max_client_batch_size": config.max_inputs,
        "max_request_tokens": config.max_request_tokens,
        "payload_limit": config.payload_bytes,
        "max_concurrent_requests": config.max_requests,
        "auto_truncate": False,
        "prompts": sorted(manifest.prompts.by_name),
        "default_prompt": manifest.prompts.default,
        "integer_limit": float(integer_limit(manifest.spec.embedding_dim)),
        "backend": ready.backend if ready else None,
        "compute": ready.compute_label if ready else None,
        "parity": service.parity,
        "version": installed().get("anna-export", ""),
    }
    return answer_json(value)


async def health(service: EmbeddingService, call: Call) -> Response:
    """Liveness: 200 while the process answers."""
    return answer_json({"status": "alive"})


async def ready(service: EmbeddingService, call: Call) -> Response:
    """Readiness: 200 while the model is loaded, has passed its self-test, and takes requests."""
    value = {
        "ready": service.is_ready,
        "loaded": service.scheduler.ready is not None,
        "draining": service.draining,
        "pending_tokens": service.scheduler.pending_tokens,
    }
    return answer_json(value, status=200 if service.is_ready else 503)


async def metrics(service: EmbeddingService, call: Call) -> Response:
    """Metrics in Prometheus's text format."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


ENDPOINTS: Final = (
    Endpoint("POST", "/v1/embeddings", embeddings, OpenAIRequest),
    Endpoint("POST", "/embed", embed, TeiRequest),
    Endpoint("POST", "/", embed, TeiRequest),
    Endpoint("POST", "/tokenize", tokenize, TokenizeRequest),
    Endpoint("GET", "/v1/models", models),
    Endpoint("GET", "/v1/models/{model}", model),
    Endpoint("GET", "/info", info),
    Endpoint("GET", "/health", health, refusals=(), guarded=False),
    Endpoint("GET", "/ping", health, refusals=(), guarded=False),
    Endpoint("GET", "/ready", ready, refusals=(503,), guarded=False),
    Endpoint("GET", "/metrics", metrics, refusals=(), guarded=False),
)


def _require_model(service: EmbeddingService, name: str | None) -> None:
    names = (service.config.model_name, service.artifact.manifest.artifact_id)
    if name is not None and name not in names:
        raise Refusal(
            Kind.NOT_FOUND,
            f"expected the model {names[0]!r}, found {name[:80]!r}; GET /v1/models names it",
            "model_not_found",
            "model",
        )


def _model(service: EmbeddingService) -> dict[str, Any]:
    """Describe the model in OpenAI's shape."""
    manifest = service.artifact.manifest
    return {
        "id": service.config.model_name,
        "object": "model",
        "created": 0,
        "owned_by": "anna-export",
        "artifact_id": manifest.artifact_id,
        "dimensions": manifest.spec.embedding_dim,
    }


def _headers(answer: Answer) -> dict[str, str]:
    """Return TEI's headers, milliseconds and what was computed, and whether vectors are unit."""
    seconds = {
        "x-tokenization-time": answer.tokenize_seconds,
        "x-queue-time": answer.queue_seconds,
        "x-inference-time": answer.inference_seconds,
        "x-compute-time": answer.tokenize_seconds + answer.inference_seconds,
    }
    return {
        **{name: str(round(value * 1e3)) for name, value in seconds.items()},
        "x-compute-tokens": str(answer.texts.tokens - answer.texts.cached_tokens),
        "x-truncated-texts": str(answer.texts.truncated),
        "x-normalized": str(answer.normalized).lower(),
    }
