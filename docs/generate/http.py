"""The HTTP reference, from the routes and bodies of `anna-export serve`."""

import json
from typing import Any

from anna_export.serve.app import ENDPOINTS
from anna_export.serve.openapi import openapi_document
from docs.generate.markdown import cell, table
from docs.generate.schemas import fields


def document() -> dict[str, Any]:
    """Return the OpenAPI document that a server gives at /openapi.json."""
    return openapi_document(ENDPOINTS)


def routes() -> str:
    """Return a table of routes, the fields of their bodies, and the refusals."""
    openapi = document()
    rows: list[list[str]] = []
    refusals: dict[str, str] = {}
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            name = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
            link = f"[{name}](#{name.lower()})" if name else ""
            rows.append([f"`{method.upper()} {path}`", cell(operation["description"] or ""), link])
            refusals |= {
                status: answer["description"]
                for status, answer in operation["responses"].items()
                if status != "200"
            }
    parts = [table(["route", "answer", "body"], rows)]
    for name, content in openapi["components"]["schemas"].items():
        if properties := content.get("properties"):
            parts += [f"### {name}", fields(properties, content.get("required", []))]
    parts += [
        "## Refusals",
        table(["status", "meaning"], [list(map(cell, r)) for r in sorted(refusals.items())]),
    ]
    return "\n\n".join(parts)


def as_json() -> str:
    """Return the document as JSON."""
    return json.dumps(document(), indent=2) + "\n"
