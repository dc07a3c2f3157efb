"""The document at /openapi.json: what each route takes and how it refuses."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from anna_export.machine.versions import installed
from anna_export.serve.guard import DEADLINE_HEADER, Handler

_SCHEMAS: Final = "#/components/schemas/"
_ANSWER: Final = {
    "description": "Successful Response",
    "content": {"application/json": {"schema": {}}},
}
_REFUSALS: Final = {
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
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route and its handler, whose name and docstring the document has.

    Args:
        method: The HTTP method.
        path: The route; {NAME} in it is the rest of the path.
        handler: Answers it.
        body: What it reads; None for no body.
        refusals: The statuses it may answer besides 200.
        guarded: Whether it needs a key, and is limited, counted and logged.
    """

    method: str
    path: str
    handler: Handler
    body: type[BaseModel] | None = None
    refusals: Sequence[int] = tuple(_REFUSALS)
    guarded: bool = True


def openapi_document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Describe all routes, as OpenAPI 3.1."""
    bodies = dict.fromkeys(endpoint.body for endpoint in endpoints if endpoint.body)
    _, schemas = models_json_schema(
        [(body, "validation") for body in bodies], ref_template=f"{_SCHEMAS}{{model}}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "anna-export serve",
            "description": "Text embeddings of one model.",
            "version": installed().get("anna-export", ""),
        },
        "paths": {
            endpoint.path: {endpoint.method.lower(): _operation(endpoint)} for endpoint in endpoints
        },
        "components": {"schemas": schemas["$defs"]},
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    name = getattr(endpoint.handler, "__name__", "")
    operation: dict[str, Any] = {
        "summary": name.title(),
        "description": endpoint.handler.__doc__,
        "operationId": re.sub(r"\W", "_", name + endpoint.path) + f"_{endpoint.method.lower()}",
    }
    if parts := re.findall(r"{(\w+)}", endpoint.path):
        in_path = {"in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [{"name": part, **in_path} for part in parts]
    if endpoint.body is not None:
        content = {"schema": {"$ref": _SCHEMAS + endpoint.body.__name__}}
        operation["requestBody"] = {"content": {"application/json": content}, "required": True}
    refusals = {str(status): {"description": _REFUSALS[status]} for status in endpoint.refusals}
    return {**operation, "responses": {"200": _ANSWER, **refusals}}
