"""Parsed content held to a type by pydantic: one line names the first wrong field."""

from pathlib import Path
from typing import Any, TypeVar

import pydantic

from anna_export.errors import AnnaError, InputError

Value = TypeVar("Value")


def validated(
    kind: type[Value],
    content: object,
    path: Path,
    *,
    error: type[AnnaError] = InputError,
    remedy: str = "",
) -> Value:
    """Return a file's parsed content as a pydantic model or a dataclass.

    Args:
        kind: The type.
        content: What the file holds, parsed.
        path: The file, for the message.
        error: What is raised: InputError for what a user wrote, DamagedError for what we wrote.
        remedy: What to do, after the message.

    Raises:
        AnnaError: Of the class `error`, naming the field that is wrong, and the file.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(content)
    except pydantic.ValidationError as invalid:
        first = invalid.errors()[0]
        raise error(_line(first, path) + (f"; {remedy}" if remedy else "")) from None


def _line(error: Any, path: Path) -> str:
    field = ".".join(map(str, error["loc"])) or "content"
    if error["type"] == "missing":
        return f"expected {field} in {path}, found none"
    if error["type"] == "extra_forbidden":
        return f"expected no field {field} in {path}, found one"
    value = f"found {str(error['input'])[:60]!r}"
    rule = error["msg"].removeprefix("Value error, ")
    if rule.startswith("Input should be "):
        return f"expected {rule.removeprefix('Input should be ')} as {field} in {path}, {value}"
    return f"expected another {field} in {path}: {rule}, {value}"
