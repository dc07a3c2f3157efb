"""Which prompt an mteb task's texts get: the artifact's own, a user's, or one that ships here.

mteb_prompts.json holds an instruction for every task of MTEB(eng, v2), by the task's name, and one
for every type of task. It is written as the project's own files of prompts are; where mteb gives
a task an instruction, it is that, word for word, because published scores depend on it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pydantic

from anna_export.errors import InputError, MissingError
from anna_export.files.validation import validated
from anna_export.text.prompt_file import Task
from anna_export.text.prompt_formats import DEFAULT_FORMAT, FORMATS, FormatName, format_of
from anna_export.text.prompts import NO_PROMPT, Prompt, Prompts

# In place of a file's path.
NONE: Final = "none"
_SHIPPED: Final = Path(__file__).with_name("mteb_prompts.json")


@dataclass(frozen=True, slots=True)
class TaskPrompts:
    """Prompts by the name or type of an mteb task.

    Args:
        prompts: The prompts.
        only: Use no others: a task that is not among them has no prompt.
    """

    prompts: Prompts
    only: bool = False


class _File(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    tasks: dict[str, Task]


def find_prompt(
    task: str, kind: str, side: str | None, baked: Prompts, users: TaskPrompts | None = None
) -> Prompt:
    """Return the prompt for a text of a task.

    The artifact's own prompts come first, then a user's, then those that ship; in each, a prompt
    of the task's name, of its type's, or, in retrieval and reranking, "query" or "document".
    Those that ship are in the format of the artifact's own; one without instructions takes none.
    Documents have the prompt that their queries' prompt names, else none.

    Args:
        task: The task's name in mteb.
        kind: Its type in mteb.
        side: "query" or "document" in retrieval and reranking, else None.
        baked: The artifact's.
        users: A user's.
    """
    if users is not None and users.only:
        sources = [users.prompts]
    else:
        sources = [baked, *([users.prompts] if users is not None else []), _worded_alike(baked)]
    for prompts in sources:
        query = _named(prompts, [task, kind] if side is None else [task, kind, "query"])
        if side != "document":
            if query is not None:
                return prompts.by_name[query]
            continue
        if query is not None and query in prompts.documents:
            return prompts.find(prompts.documents[query])
        if (document := _named(prompts, ["document"])) is not None:
            return prompts.by_name[document]
        if query is not None:
            return NO_PROMPT
    return NO_PROMPT


def _worded_alike(baked: Prompts) -> Prompts:
    """Return the prompts that ship in the format of a model's own; none if that takes none."""
    name = format_of(baked)
    if name is not None and not FORMATS[name].takes_instruction:
        return Prompts()
    return shipped(name or DEFAULT_FORMAT)


@cache
def shipped(name: FormatName) -> Prompts:
    """Return the prompts of mteb_prompts.json, in a format that takes instructions."""
    return _read(_SHIPPED, name)


def read_task_prompts(path: Path) -> TaskPrompts:
    """Read a user's prompts by task; "none" is no prompt for any.

    Raises:
        MissingError: If there is no such file.
        InputError: If it is not JSON, or a field of it is wrong (with its name).
    """
    if str(path) == NONE:
        return TaskPrompts(Prompts(), only=True)
    if not path.is_file():
        raise MissingError(
            f'expected a file of prompts by mteb task at {path}, found none; "{NONE}" is for none'
        )
    return TaskPrompts(_read(path))


def _read(path: Path, name: FormatName | None = None) -> Prompts:
    """Read prompts by task; a name replaces every task's format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"expected JSON in {path}, found: {error}") from None
    tasks = validated(_File, content, path).tasks
    if name is not None:
        tasks = {key: task.model_copy(update={"format": name}) for key, task in tasks.items()}
    try:
        return Prompts(
            {name: task.prompt() for name, task in tasks.items()},
            documents={
                name: task.documents for name, task in tasks.items() if task.documents is not None
            },
        )
    except InputError as error:
        raise InputError(f"{error}, in {path}") from None


def _named(prompts: Prompts, names: Sequence[str]) -> str | None:
    """Return the first of these names there is a prompt of, as written or as it could be baked."""
    baked = (re.sub(r"[^a-z0-9_-]", "-", name.lower()) for name in names)
    pairs = zip(names, baked, strict=True)
    return next((name for pair in pairs for name in pair if name in prompts.by_name), None)
