"""prompts.json: per task an instruction, worked examples, and how its documents are prompted.

    {"default": "sts",
     "tasks": {
       "sts": {"format": "e5", "instruction": "Retrieve semantically similar text.",
               "examples": [{"query": "A man plays.", "response": "Someone is playing."}],
               "documents": "sts"},
       "passage": {"text": "passage: "}}}

The formats are those of e5-mistral (SFR, Linq and LGAI-Embedding use its words, with examples in
front) and of bge-en-icl, where tokens introduce instruction, query and response, and the one for
the response follows the query (`response_suffix`, which either format may have or not).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import pydantic

from anna_export.errors import InputError, MissingError
from anna_export.prompts import Prompt, Prompts

NAME: Final = re.compile(r"[a-z0-9_-]+")
# Between examples, and between the last one and the query: FlagEmbedding's, for bge-en-icl.
_BETWEEN: Final = "\n\n"

_Text = Annotated[str, pydantic.StringConstraints(min_length=1)]


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class _Example(_Strict):
    query: _Text
    response: _Text


class _Task(_Strict):
    text: str | None = None
    format: Literal["e5", "bge-en-icl"] | None = None
    instruction: _Text | None = None
    examples: list[_Example] = []
    response_suffix: bool | None = None
    documents: str | None = None


class _File(_Strict):
    default: str | None = None
    tasks: dict[str, _Task]


@dataclass(frozen=True, slots=True)
class _Format:
    """The words between which a task's parts stand."""

    instruction: str
    query: str
    response: str
    response_suffix: bool  # whether the query is followed by the word for its response

    def front(self, instruction: str) -> str:
        return f"{self.instruction}{instruction}\n{self.query}"

    def prompt(self, task: _Task) -> Prompt:
        """Return what stands around the query."""
        assert task.instruction is not None
        front = self.front(task.instruction)
        shots = [
            f"{front}{example.query}\n{self.response}{example.response}"
            for example in task.examples
        ]
        asks = self.response_suffix if task.response_suffix is None else task.response_suffix
        back = f"\n{self.response.rstrip()}" if asks else ""
        return Prompt(_BETWEEN.join([*shots, front]), back)


_FORMATS: Final = {
    "e5": _Format("Instruct: ", "Query: ", "Response: ", response_suffix=False),
    "bge-en-icl": _Format("<instruct>", "<query>", "<response>", response_suffix=True),
}


def read_prompt_file(path: Path) -> Prompts:
    """Read prompts.json.

    Raises:
        MissingError: If there is no such file.
        InputError: If it is not JSON (with the line), or a field of it is wrong (with its name).
    """
    if not path.is_file():
        raise MissingError(f"expected a file of prompts at {path}, found none")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_distinct(path))
    except UnicodeDecodeError:
        raise InputError(f"expected JSON in UTF-8 in {path}, found other bytes") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"expected JSON in {path}, found, in line {error.lineno}: {error.msg}"
        ) from None
    try:
        file = _File.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(
            f"expected another {where} in {path}, found: {first['msg'].lower()}"
        ) from None
    for name, task in file.tasks.items():
        _require_one_kind(path, name, task)
    try:
        return Prompts(
            {name: _prompt(task) for name, task in file.tasks.items()},
            file.default,
            {
                name: task.documents
                for name, task in file.tasks.items()
                if task.documents is not None
            },
        )
    except InputError as error:
        raise InputError(f"{error}, in {path}") from None


def _prompt(task: _Task) -> Prompt:
    return Prompt(task.text or "") if task.format is None else _FORMATS[task.format].prompt(task)


def _require_one_kind(path: Path, name: str, task: _Task) -> None:
    if not NAME.fullmatch(name):
        raise InputError(
            f"expected names of a-z, 0-9, _ and - in {path}, found {name!r}; rename it"
        )
    whole, composed = task.text is not None, task.format is not None
    if whole == composed:
        raise InputError(
            f"expected tasks.{name} in {path} with either a text or a format, found "
            f"{'both' if whole else 'neither'}"
        )
    if composed and task.instruction is None:
        raise InputError(f"expected tasks.{name}.instruction in {path}, found none")
    parts = (task.instruction, task.examples or None, task.response_suffix)
    if whole and any(part is not None for part in parts):
        raise InputError(
            f"expected tasks.{name} in {path} with a text alone, found parts of a format too; "
            "name the format in place of the text"
        )


def _distinct(path: Path) -> Callable[[list[tuple[str, object]]], dict[str, object]]:
    """Refuse a key that stands twice in an object: the first one would be lost."""

    def make(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in found:
                raise InputError(f"expected every key once in {path}, found {key!r} twice")
            found[key] = value
        return found

    return make
