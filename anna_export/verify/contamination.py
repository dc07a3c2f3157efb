"""Tasks whose data a model was trained on: their scores do not show how it generalises."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from anna_export.errors import InputError
from anna_export.files.model_folders import Adapters, in_order

_CARD: Final = "README.md"
_FRONT: Final = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
# What a task's name says beside that of its data.
_ENDINGS: Final = re.compile(
    r"(\.v\d+|hardnegatives|classification|clustering|retrieval|reranking|summarization|"
    r"pairclassification|p2p|s2s)$"
)


def datasets_of(adapter: Adapters, names: Sequence[str] = ()) -> frozenset[str]:
    """Return the names of what a model was trained on: these, and those of its adapters' cards.

    Args:
        adapter: The adapters' folders; the `datasets` of its README.md's front matter are read.
        names: Names of tasks or data sets.

    Raises:
        InputError: If the card's front matter is no YAML, or its `datasets` are no names.
    """
    cards = (folder / _CARD for folder in in_order(adapter))
    return frozenset(names).union(*(_datasets(path) for path in cards if path.is_file()))


def _datasets(path: Path) -> list[str]:
    front = _FRONT.match(path.read_text(encoding="utf-8", errors="replace"))
    try:
        card: Any = yaml.safe_load(front[1]) if front else {}
    except yaml.YAMLError as error:
        raise InputError(
            f"expected YAML between the first lines of --- in {path}, found: {error}"
        ) from None
    named = card.get("datasets") if isinstance(card, dict) else None
    if isinstance(named, str):
        named = [named]
    if named is not None and not (
        isinstance(named, list) and all(isinstance(name, str) for name in named)
    ):
        raise InputError(f"expected datasets as a list of names in {path}, found {named!r}")
    return named or []


def was_trained_on(names: frozenset[str], *task_names: str) -> bool:
    """Say whether one of the names is one of a task's: its own, its base's, its data's path.

    Names are compared in lower case, without owner, hyphens, version and kind of task: so
    "mteb/banking77" and "Banking77Classification" are the same. A part of a name is not enough:
    "sts" is not "STS12".
    """
    plain = {_plain(name) for name in task_names}
    return any(_plain(name) in plain for name in names)


def _plain(name: str) -> str:
    short = name.rstrip("/").rpartition("/")[2].lower()
    while (cut := _ENDINGS.sub("", short).rstrip("-_")) not in ("", short):
        short = cut
    return re.sub(r"[^a-z0-9]", "", short)
