"""prompts.json: per task an instruction, worked examples, and how its documents are prompted.

    {"default": "sts",
     "tasks": {
       "sts": {"format": "e5", "instruction": "Retrieve semantically similar text.",
               "examples": [{"query": "A man plays.", "response": "Someone is playing."}],
               "documents": "sts"},
       "passage": {"text": "passage: "}}}

The formats' words stand in prompt_formats.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import pydantic

from anna_export.errors import InputError, MissingError
from anna_export.files.model_folders import Adapters, from_last
from anna_export.files.validation import validated
from anna_export.text.prompt_formats import FORMATS, Example, Format, FormatName
from anna_export.text.prompts import Prompt, Prompts, read_prompts

# Where anna-train puts an adapter's prompts.
ADAPTERS_FILE: Final = "prompts.json"
NAME: Final = re.compile(r"[a-z0-9_-]+")

_Text = Annotated[str, pydantic.StringConstraints(min_length=1)]


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class _Example(_Strict):
    query: _Text
    response: _Text


class Task(_Strict):
    """One task of the file: a text as it is, or the parts of a format."""

    text: str | None = None
    format: FormatName | None = None
    document: bool = False  # the format's words for documents, not those for queries
    instruction: _Text | None = None
    examples: list[_Example] = []
    response_suffix: bool | None = None
    documents: str | None = None

    @property
    def takes_examples(self) -> bool:
        """Whether worked examples may stand in front of a query."""
        words = None if self.format is None or self.document else FORMATS[self.format]
        return words is not None and words.response is not None

    def prompt(self, examples: Sequence[Example] | None = None) -> Prompt:
        """Return what stands around the query.

        Args:
            examples: In place of the task's own; a task that takes none has none.
        """
        if self.format is None:
            return Prompt(self.text or "")
        if self.document:
            return Prompt(FORMATS[self.format].document)
        if not self.takes_examples:
            examples = ()
        elif examples is None:
            examples = [Example(example.query, example.response) for example in self.examples]
        return FORMATS[self.format].prompt(self.instruction, examples, self.response_suffix)


class TaskFile(_Strict):
    """The whole file, as it is written."""

    default: str | None = None
    tasks: dict[str, Task]

    def prompts(self) -> Prompts:
        """Return every task's prompt.

        Raises:
            InputError: If the default, or a prompt for documents, is none of them.
        """
        return Prompts(
            {name: task.prompt() for name, task in self.tasks.items()},
            self.default,
            {
                name: task.documents
                for name, task in self.tasks.items()
                if task.documents is not None
            },
        )


def read_prompt_file(path: Path) -> Prompts:
    """Read the prompts of prompts.json.

    Raises:
        MissingError: If there is no such file.
        InputError: If it is not JSON (with the line), or a field of it is wrong (with its name).
    """
    return read_task_file(path).prompts()


def read_task_file(path: Path) -> TaskFile:
    """Read the tasks of prompts.json.

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
    file = validated(TaskFile, content, path)
    for name, task in file.tasks.items():
        _require_one_kind(path, name, task)
    try:
        file.prompts()
    except InputError as error:
        raise InputError(f"{error}, in {path}") from None
    return file


def find_prompts(model: Path, adapter: Adapters) -> Prompts:
    """Read the prompts of the last adapter that brings some, else the model's.

    An adapter of anna-train brings prompts.json, which says what sentence-transformers' own file
    cannot: what follows a text, and which prompt the documents have.

    Raises:
        InputError: If a file of them cannot be read.
    """
    for folder in from_last(adapter):
        if (folder / ADAPTERS_FILE).is_file():
            return read_prompt_file(folder / ADAPTERS_FILE)
        if (tuned := read_prompts(folder)).by_name:
            return tuned
    return read_prompts(model)


def _require_one_kind(path: Path, name: str, task: Task) -> None:
    if not NAME.fullmatch(name):
        raise InputError(
            f"expected names of a-z, 0-9, _ and - in {path}, found {name!r}; rename it"
        )
    plain, composed = task.text is not None, task.format is not None
    if plain == composed:
        raise InputError(
            f"expected tasks.{name} in {path} with either a text or a format, found "
            f"{'both' if plain else 'neither'}"
        )
    parts = (task.instruction, task.examples or None, task.response_suffix)
    if plain and (task.document or any(part is not None for part in parts)):
        raise InputError(
            f"expected tasks.{name} in {path} with a text alone, found parts of a format too; "
            "name the format in place of the text"
        )
    if task.format is not None:
        _require_parts(f"tasks.{name}", path, task, FORMATS[task.format])


def _require_parts(name: str, path: Path, task: Task, words: Format) -> None:
    """Refuse what a task has and its format does not, and an instruction that it needs."""
    of = f"in {path}: the format {task.format} has"
    if task.document and not words.document:
        raise InputError(
            f"expected no `document` for {name}, found it {of} no words for documents; leave it out"
        )
    if words.takes_instruction and not task.document and task.instruction is None:
        raise InputError(f"expected {name}.instruction in {path}, found none")
    if task.instruction is not None and (task.document or not words.takes_instruction):
        raise InputError(f"expected no {name}.instruction, found one {of} none there; leave it out")
    shows = task.examples or task.response_suffix is not None
    if shows and (task.document or words.response is None):
        raise InputError(
            f"expected neither examples nor response_suffix for {name}, found some {of} none "
            "there; leave them out"
        )


def _distinct(path: Path) -> Callable[[list[tuple[str, object]]], dict[str, object]]:
    """Refuse a key that stands twice in an object: the first one would be lost."""

    def make(pairs: list[tuple[str, object]]) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, value in pairs:
            if key in values:
                raise InputError(f"expected every key once in {path}, found {key!r} twice")
            values[key] = value
        return values

    return make
