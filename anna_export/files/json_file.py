"""JSON files: read, validated, and told in one line where they are not as expected."""

import json
from pathlib import Path
from typing import Any

from anna_export.errors import DamagedError, MissingError


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        MissingError: If there is no such file.
        DamagedError: If it is not a JSON object.
    """
    return _read_json(path, dict, "object")


def read_json_list(path: Path) -> list[Any]:
    """Read one JSON array.

    Raises:
        MissingError: If there is no such file.
        DamagedError: If it is not a JSON array.
    """
    return _read_json(path, list, "array")


def _read_json(path: Path, kind: type, called: str) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(
            f"expected the file {path}, found none; is {path.parent} the right folder?"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(
            f"expected JSON in {path}, found {error}; copy or download it again"
        ) from None
    if not isinstance(value, kind):
        raise DamagedError(
            f"expected a JSON {called} in {path}, found a {type(value).__name__}; copy or "
            "download it again"
        )
    return value
