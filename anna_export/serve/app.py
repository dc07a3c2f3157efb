"""The routes: OpenAI's under /v1, text-embeddings-inference's, and those for whoever runs it."""

from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from anna_export.machine.versions import installed
from anna_export.serve.refusal import Kind, Refusal
from anna_export.serve.request import DEADLINE_HEADER, answer_json, answer_refusal, respond
from anna_export.serve.schema import (
    OpenAIRequest,
    TeiRequest,
    TokenizeRequest,
    read_body,
)
from anna_export.serve.service import Answer, Service
from anna_export.serve.vectors import integer_limit, told

_BODIES: Final = (OpenAIRequest, TeiRequest, TokenizeRequest)
_REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": text}
    for status, text in {
        400: "The request is not as it must be, in OpenAI's shape.",
        401: "No key, or a wrong one.",
        404: "No such model.",
        408: "The body took too long.",
        413: "The body is too large.",
        422: "The request is not as it must be, in TEI's shape.",
        424: "A text has no finite vector.",
        429: "More is waiting than is computed in time; Retry-After says when to come back.",
        503: "The model is not loaded, or the server is stopping.",
        504: f"The deadline of {DEADLINE_HEADER} passed.",
    }.items()
}


def build_app(service: Service) -> FastAPI:
    """Return the application over a service."""
    app = FastAPI(
        title="anna-export serve",
        description="Text embeddings of one model.",
        version=installed().get("anna-export", ""),
        docs_url=None,
        redoc_url=None,
    )
    _embedding_routes(app, service)
    _operating_routes(app, service)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        kind = Kind.NOT_ALLOWED if error.status_code == 405 else Kind.NOT_FOUND
        refusal = Refusal(
            kind,
            f"expected a route of /openapi.json, found {request.method} {request.url.path}",
            "not_found",
            headers=dict(error.headers or {}),
        )
        return answer_refusal(request, refusal)

    generated = app.openapi

    def described() -> dict[str, Any]:
        found = generated()
        _, schemas = models_json_schema(
            [(model, "validation") for model in _BODIES],
            ref_template="#/components/schemas/{model}",
        )
        components = found.setdefault("components", {}).setdefault("schemas", {})
        components |= schemas["$defs"]
        return found

    app.openapi = described  # type: ignore[method-assign]
    return app


def _takes(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _embedding_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/embeddings", openapi_extra=_takes(OpenAIRequest), responses=_REFUSALS)
    async def embeddings(request: Request) -> Response:
        """OpenAI's embeddings."""

        async def work(body: bytearray, deadline: float | None) -> Response:
            asked = read_body(OpenAIRequest, body)
            _require_model(service, asked.model)
            answer = await service.embed(
                asked.input, asked, truncate=asked.truncate, field="input", deadline=deadline
            )
            data = [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": told(vector, asked.encoding_format),
                }
                for index, vector in enumerate(answer.vectors)
            ]
            usage = {
                "prompt_tokens": answer.read.tokens,
                "total_tokens": answer.read.tokens,
                "prompt_tokens_details": {"cached_tokens": answer.read.cached},
            }
            name = service.settings.model_name
            value = {"object": "list", "data": data, "model": name, "usage": usage}
            return answer_json(value, _timings(answer))

        return await respond(service, request, work)

    async def embed(request: Request) -> Response:
        """TEI's embeddings: a list of vectors."""

        async def work(body: bytearray, deadline: float | None) -> Response:
            asked = read_body(TeiRequest, body)
            answer = await service.embed(
                asked.inputs,
                asked,
                truncate=bool(asked.truncate),
                field="inputs",
                deadline=deadline,
            )
            return answer_json(list(answer.vectors), _timings(answer))

        return await respond(service, request, work)

    for path in ("/embed", "/"):
        app.post(path, openapi_extra=_takes(TeiRequest), responses=_REFUSALS)(embed)

    @app.post("/tokenize", openapi_extra=_takes(TokenizeRequest), responses=_REFUSALS)
    async def tokenize(request: Request) -> Response:
        """TEI's tokens of texts as they are embedded, behind a prompt if one is named."""

        async def work(body: bytearray, deadline: float | None) -> Response:
            asked = read_body(TokenizeRequest, body)
            return answer_json(await service.tokens(asked))

        return await respond(service, request, work)


def _operating_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses=_REFUSALS)
    async def models(request: Request) -> Response:
        """The one model, in OpenAI's shape."""

        async def work(body: bytearray, deadline: float | None) -> Response:
            return answer_json({"object": "list", "data": [_model(service)]})

        return await respond(service, request, work)

    @app.get("/info", responses=_REFUSALS)
    async def info(request: Request) -> Response:
        """What is served, and the limits."""

        async def work(body: bytearray, deadline: float | None) -> Response:
            return answer_json(_info(service))

        return await respond(service, request, work)

    async def health() -> Response:
        """Whether the process answers."""
        return answer_json({"status": "alive"})

    for path in ("/health", "/ping"):
        app.get(path)(health)

    @app.get("/ready", responses={503: _REFUSALS[503]})
    async def ready() -> Response:
        """Whether the model is loaded, tested, and takes requests."""
        found = {
            "ready": service.is_ready,
            "loaded": service.scheduler.ready is not None,
            "draining": service.draining,
            "pending_tokens": service.scheduler.pending_tokens,
        }
        return answer_json(found, status=200 if service.is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus's text."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _require_model(service: Service, name: str | None) -> None:
    known = (service.settings.model_name, service.artifact.manifest.artifact_id)
    if name is not None and name not in known:
        raise Refusal(
            Kind.NOT_FOUND,
            f"expected the model {known[0]!r}, found {name[:80]!r}; GET /v1/models names it",
            "model_not_found",
            "model",
        )


def _timings(answer: Answer) -> dict[str, str]:
    """Return TEI's headers: milliseconds, and what was computed."""
    seconds = {
        "x-tokenization-time": answer.tokenize_seconds,
        "x-queue-time": answer.queue_seconds,
        "x-inference-time": answer.inference_seconds,
        "x-compute-time": answer.tokenize_seconds + answer.inference_seconds,
    }
    return {
        **{name: str(round(value * 1e3)) for name, value in seconds.items()},
        "x-compute-tokens": str(answer.read.tokens - answer.read.cached),
        "x-truncated-texts": str(answer.read.cut),
    }


def _model(service: Service) -> dict[str, Any]:
    manifest = service.artifact.manifest
    return {
        "id": service.settings.model_name,
        "object": "model",
        "created": 0,
        "owned_by": "anna-export",
        "artifact_id": manifest.artifact_id,
        "dimensions": manifest.spec.dim,
    }


def _info(service: Service) -> dict[str, Any]:
    manifest, settings = service.artifact.manifest, service.settings
    ready = service.scheduler.ready
    prompts = manifest.prompts
    return {
        "model_id": settings.model_name,
        "model_sha": manifest.artifact_id,
        "model_dtype": str(manifest.precision),
        "model_type": {"embedding": {"pooling": "last_token"}},
        "dimensions": manifest.spec.dim,
        "max_input_length": manifest.contract.max_tokens,
        "max_batch_tokens": service.scheduler.limits.tokens,
        "max_client_batch_size": settings.max_inputs,
        "max_request_tokens": settings.max_request_tokens,
        "payload_limit": settings.payload_bytes,
        "max_concurrent_requests": settings.max_requests,
        "auto_truncate": False,
        "prompts": sorted(prompts.by_name),
        "default_prompt": prompts.default,
        "integer_limit": float(integer_limit(manifest.spec.dim)),
        "backend": ready.backend if ready else None,
        "arithmetic": ready.arithmetic if ready else None,
        "parity": service.parity,
        "version": installed().get("anna-export", ""),
    }
