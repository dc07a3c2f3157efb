"""The data sets of a recipe: rows on disk, and what is known of them after one pass over all."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from anna_export.errors import InputError
from anna_export.files.hashing import file_sha256
from anna_export.progress import Progress
from anna_export.text.prompt_file import Task, TaskFile
from anna_train.data.rows import Row, RowFile, TaskType, text_key
from anna_train.recipe import DataRecipe, TuneRecipe

# Rows between two reports of progress.
_REPORTED = 1000


@dataclass(frozen=True, slots=True)
class DataSet:
    """One file of rows, checked, with what the batch plan needs of every row.

    Args:
        name: The file's name without its ending.
        rows: Its rows, read when they are asked for.
        task: What its queries are prompted with.
        document_task: What its documents are prompted with; None: nothing.
        sha256: Of the file.
        hashes: (N, 2) uint64: of each row's query, and of its first positive where other queries'
            documents are negatives (retrieval), else of its query again.
    """

    name: str
    rows: RowFile
    task: Task
    document_task: Task | None
    sha256: str
    hashes: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def open(
        cls, data: DataRecipe, tasks: TaskFile, recipe: TuneRecipe, progress: Progress | None = None
    ) -> Self:
        """Read a file once, and hold every row to the recipe.

        Raises:
            InputError: If a row is malformed or lacks what the recipe needs (file, line, field),
                or the task is unknown.
        """
        task, document_task = _tasks(data, tasks)
        rows = RowFile(data.path)
        hashes = np.empty((len(rows), 2), dtype=np.uint64)
        for index in range(len(rows)):
            row = rows[index]
            if problem := _lacking(row, task, recipe):
                raise InputError(f"{problem}, in line {rows.line(index)} of {data.path}")
            single = row.pos[0] if row.type is TaskType.RETRIEVAL else row.query
            hashes[index] = text_hash(row.query), text_hash(single)
            if progress is not None and (index + 1) % _REPORTED == 0:
                progress(index + 1, len(rows))
        if progress is not None:
            progress(len(rows), len(rows))
        return cls(data.path.stem, rows, task, document_task, file_sha256(data.path), hashes)


def text_hash(text: str) -> int:
    """Return 64 bits that equal texts share, however they are spaced and cased."""
    content = text_key(text).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def require_names(sets: Sequence[DataRecipe]) -> None:
    """Refuse two data sets of one name: the plan and the log could not tell them apart.

    Raises:
        InputError: If two files are named alike.
    """
    paths: dict[str, Path] = {}
    for data in sets:
        other = paths.setdefault(data.path.stem, data.path)
        if other is not data.path:
            raise InputError(
                f"expected data sets of different names, found {other} and {data.path}; rename one"
            )


def _tasks(data: DataRecipe, tasks: TaskFile) -> tuple[Task, Task | None]:
    if data.task not in tasks.tasks:
        raise InputError(
            f"expected a task of {', '.join(tasks.tasks)} for {data.path}, found {data.task!r}; "
            "name it in the prompts file"
        )
    task = tasks.tasks[data.task]
    return task, tasks.tasks[task.documents] if task.documents else None


def _lacking(row: Row, task: Task, recipe: TuneRecipe) -> str | None:
    """Return what the recipe needs of a row and it does not have."""
    if not row.query.strip():
        return "expected a text in query, found spaces alone"
    for name, texts in (("pos", row.pos), ("neg", row.neg)):
        if empty := [index for index, text in enumerate(texts) if not text.strip()]:
            return f"expected a text in {name}[{empty[0]}], found spaces alone"
    if row.prompt is not None and row.prompt != task.instruction:
        return (
            f"expected the task's instruction {task.instruction!r} in prompt, found {row.prompt!r}"
        )
    if recipe.loss.soft_labels and row.neg and not row.scored:
        return (
            "expected pos_scores and neg_scores, found none (run anna-train score, or set "
            "loss.soft_labels to 0)"
        )
    if row.type is not TaskType.RETRIEVAL and not (row.neg and recipe.batch.negatives):
        return (
            f"expected negatives for a row of type {row.type}, for which other queries' documents "
            "are none, found none"
        )
    return None
