"""What a user wrote in a file, held to a pydantic model: one line names the first wrong field."""

from pathlib import Path
from typing import TypeVar

import pydantic

from anna_export.errors import InputError

Model = TypeVar("Model", bound=pydantic.BaseModel)


def validated(model: type[Model], content: object, path: Path) -> Model:
    """Return a file's parsed content as a model.

    Raises:
        InputError: Naming the field that is wrong, and the file.
    """
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(
            f"expected another {where} in {path}, found: {first['msg'].lower()}"
        ) from None
