"""JSON Schemas of the files that are read and written, from the types that read them."""

import importlib
import inspect
import json
import re
from dataclasses import dataclass
from typing import Any

from anna_train.data.rows import Row
from pydantic import TypeAdapter

from anna_export.artifact.manifest import Manifest
from anna_export.bench.result import Bench
from anna_export.engines.record import EngineRecord
from anna_export.text.prompt_file import TaskFile
from anna_export.verify.parity_report import ParityReport
from docs.generate.markdown import cell, table

_COMMENT = re.compile(r"^\s+(\w+): [^#\n]+#\s*(.+)$", re.MULTILINE)
_ARGUMENT = re.compile(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Schema:
    """A file and the type that it is read as.

    Args:
        file: The file's name.
        type: The class.
        text: What the file is, in one sentence.
    """

    file: str
    type: Any
    text: str

    @property
    def link(self) -> str:
        """The schema's file in the site, beside the page."""
        return f"schemas/{self.file.partition('.')[0]}.schema.json"


SCHEMAS = (
    Schema(
        "manifest.json",
        Manifest,
        "What an artifact consists of: spec, framing, prompts, files with hashes, evidence.",
    ),
    Schema(
        "parity.json",
        ParityReport,
        "The parity proof: vectors, and MTEB tasks where `verify` ran them. The file has `verdict` "
        "beside these fields.",
    ),
    Schema(
        "bench.json",
        Bench,
        "Every run of `anna-export bench`, with raw times and the hardware.",
    ),
    Schema(
        "prompts.json",
        TaskFile,
        "The prompts that `export`, `prompts add` and `tune` read.",
    ),
    Schema(
        "rows.jsonl",
        Row,
        "One training row a line. Fields that are not listed are kept and written back.",
    ),
    Schema(
        "engines/TARGET/sm_XX.json",
        EngineRecord,
        "What a stored engine was built by, for and from.",
    ),
)


def schema(entry: Schema) -> dict[str, Any]:
    """Return a file's JSON Schema; a field's comment or docstring becomes its description."""
    described: dict[str, Any] = TypeAdapter(entry.type).json_schema()
    described = {"$schema": "https://json-schema.org/draft/2020-12/schema", **described}
    sources = _sources(entry.type)
    for name, part in [("", described), *described.get("$defs", {}).items()]:
        source = sources.get(name or described["title"], "")
        comments = dict(_ARGUMENT.findall(source)) | dict(_COMMENT.findall(source))
        for field, value in part.get("properties", {}).items():
            if field in comments:
                value.setdefault("description", comments[field])
    return described


def page() -> str:
    """Return the page of all files."""
    parts = [
        "# Files and their schemas",
        "Generated from the types that read these files. Each file's JSON Schema is a link.",
    ]
    for entry in SCHEMAS:
        content = schema(entry)
        parts += [f"## {entry.file}", f"{entry.text} [JSON Schema]({entry.link})"]
        for name, part in [("", content), *content.get("$defs", {}).items()]:
            if properties := part.get("properties"):
                parts += [f"### {name.lstrip('_')}"] if name else []
                parts.append(fields(properties, part.get("required", [])))
    return "\n\n".join(parts) + "\n"


def files() -> dict[str, str]:
    """Return the schemas' files by their paths beside the page."""
    return {entry.link: json.dumps(schema(entry), indent=2) + "\n" for entry in SCHEMAS}


def fields(properties: dict[str, Any], required: list[str]) -> str:
    """Return a table of an object's fields."""
    rows = [
        [
            f"`{name}`",
            cell(_type(value)),
            "" if name in required else "no",
            cell(value.get("description", "")),
        ]
        for name, value in properties.items()
    ]
    return table(["field", "type", "required", "meaning"], rows)


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        return str(value["$ref"].rpartition("/")[2].lstrip("_"))
    if "anyOf" in value:
        return " or ".join(map(_type, value["anyOf"]))
    if "enum" in value or "const" in value:
        return " or ".join(json.dumps(item) for item in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"array of {_type(value['items'])}" if "items" in value else "array"
    inner = value.get("additionalProperties")
    if isinstance(inner, dict):
        return f"object of {_type(inner)}"
    return str(value.get("type", "any"))


def _sources(root: Any) -> dict[str, str]:
    """Return the source of the classes that a type's module and its imports define, by name."""
    sources: dict[str, str] = {}
    pending = [importlib.import_module(root.__module__)]
    visited = set()
    while pending:
        module = pending.pop()
        if module.__name__ in visited or not module.__name__.startswith("anna_"):
            continue
        visited.add(module.__name__)
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__.startswith("anna_"):
                if name not in sources:
                    sources[name] = inspect.getsource(value)
                    pending.append(importlib.import_module(value.__module__))
    return sources
