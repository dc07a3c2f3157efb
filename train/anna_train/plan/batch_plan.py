"""The batch plan: everything that is drawn for a training run, compiled before it starts.

One row of its table is one row of one step. What a step sees is read from here alone, so that the
order is the same on any number of processes and after any interruption, and can be read with any
parquet reader.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anna_export.errors import DamagedError, InputError
from anna_export.files.atomic import staged_file
from anna_export.progress import Progress
from anna_train.data.rows import Row
from anna_train.data.training_data import DataSet, text_hash
from anna_train.recipe import TuneRecipe

_METADATA: Final = b"anna-train"
SCHEMA: Final = pa.schema(
    [
        ("step", pa.int32()),
        ("epoch", pa.int32()),
        ("group", pa.int32()),  # within the step
        ("data", pa.string()),
        ("row", pa.int64()),  # of its data set, from 0
        ("line", pa.int64()),  # of its file, from 1
        ("positive", pa.int32()),  # which of the row's
        ("negatives", pa.list_(pa.int32())),  # which of the row's
        ("examples", pa.list_(pa.int64())),  # rows of the data set, in the order they are shown
        ("cut", pa.int32()),  # texts of the row that are longer than the limits
    ]
)


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One row of one step."""

    group: int
    row: int
    positive: int
    negatives: tuple[int, ...]
    examples: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What one step sees, all of it from one data set; rows of a group follow one another."""

    step: int
    data: str
    rows: tuple[PlannedRow, ...]


class BatchPlan:
    """A compiled plan.

    Args:
        table: Of SCHEMA, ordered by step and group.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        steps = table.column("step").to_numpy()
        self._starts = np.searchsorted(steps, np.arange(int(steps[-1]) + 2))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, step: int) -> PlannedStep:
        """Return one step, from 0."""
        start, end = self._starts[step : step + 2]
        part = self.table.slice(start, end - start).to_pylist()
        rows = (
            PlannedRow(
                row["group"],
                row["row"],
                row["positive"],
                tuple(row["negatives"]),
                tuple(row["examples"]),
            )
            for row in part
        )
        return PlannedStep(step, part[0]["data"], tuple(rows))

    @property
    def made_from(self) -> dict[str, Any]:
        """What it was compiled from."""
        return dict(json.loads(self.table.schema.metadata[_METADATA]))

    @property
    def rows_cut(self) -> int:
        """How many of its rows have a text that is longer than the limits."""
        return int(np.count_nonzero(self.table.column("cut").to_numpy()))

    def write(self, path: Path) -> None:
        """Write it as parquet; the file is there whole or not at all."""
        with staged_file(path) as aside:
            pq.write_table(self.table, aside, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read one that was written.

        Raises:
            DamagedError: If the file is none.
        """
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DamagedError(
                f"expected a batch plan at {path}, found: {str(error).splitlines()[0]}"
            ) from None
        if not table.schema.equals(SCHEMA) or _METADATA not in (table.schema.metadata or {}):
            raise DamagedError(
                f"expected a batch plan at {path}, found the columns {table.column_names}; compile "
                "one with anna-train plan"
            )
        return cls(table)


def compile_plan(
    recipe: TuneRecipe,
    sets: Sequence[DataSet],
    count_cut: Callable[[DataSet, Row, PlannedRow], int],
    progress: Progress | None = None,
) -> BatchPlan:
    """Draw every step of a run.

    Args:
        recipe: How many steps, and what each sees.
        sets: The data.
        count_cut: Returns how many of a planned row's texts are longer than the recipe's limits.
        progress: Told the steps that are drawn.

    Raises:
        InputError: If the data does not fill one step.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    steps = list(_steps(recipe, sets))
    for step, (epoch, data, batch) in enumerate(steps):
        generator = np.random.default_rng([recipe.seed, 1, step])
        for group, members in enumerate(_groups(batch, recipe.batch.group)):
            rows = [data.rows[index] for index in members]
            examples = _examples(data, rows, recipe, generator)
            for index, row in zip(members, rows, strict=True):
                positive = int(generator.integers(len(row.pos)))
                drawn = generator.permutation(len(row.neg))[: recipe.batch.negatives].tolist()
                planned = PlannedRow(group, index, positive, tuple(drawn), tuple(examples))
                values = (
                    *(step, epoch, group, data.name, index, data.rows.line(index), positive),
                    *(drawn, examples, count_cut(data, row, planned)),
                )
                for name, value in zip(SCHEMA.names, values, strict=True):
                    columns[name].append(value)
        if progress is not None:
            progress(step + 1, len(steps))
    metadata = {_METADATA: json.dumps(made_from(recipe, sets), sort_keys=True)}
    return BatchPlan(pa.table(columns, schema=SCHEMA.with_metadata(metadata)))


def made_from(recipe: TuneRecipe, sets: Sequence[DataSet]) -> dict[str, Any]:
    """Return what decides the plan, as JSON values."""
    return {
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "steps": recipe.steps,
        "batch": recipe.batch.model_dump(),
        "examples": recipe.examples.model_dump(),
        "limits": recipe.limits.model_dump(),
        "data": {data.name: data.sha256 for data in sets},
    }


def first_difference(plan: BatchPlan, other: BatchPlan) -> str | None:
    """Say where two plans first differ; None where they are equal."""
    for step in range(min(len(plan), len(other))):
        left, right = plan[step], other[step]
        if left == right:
            continue
        if left.data != right.data:
            return f"step {step}: data {left.data} and {right.data}"
        for row, (mine, theirs) in enumerate(zip(left.rows, right.rows, strict=False)):
            if mine != theirs:
                return f"step {step}, row {row}: {mine} and {theirs}"
        return f"step {step}: {len(left.rows)} and {len(right.rows)} rows"
    if len(plan) != len(other):
        return f"{len(plan)} and {len(other)} steps"
    return None


def _steps(
    recipe: TuneRecipe, sets: Sequence[DataSet]
) -> Iterator[tuple[int, DataSet, Sequence[int]]]:
    """Yield every step's epoch, data set and rows."""
    done, epoch = 0, 0
    while recipe.steps is not None or epoch < recipe.epochs:
        generator = np.random.default_rng([recipe.seed, 0, epoch])
        batches = [
            (data, batch)
            for data in sets
            for batch in _batches(data, recipe.batch.queries, generator)
        ]
        if not batches:
            raise InputError(
                f"expected {recipe.batch.queries} rows without doubles in a data set, to fill one "
                f"step, found at most {max(map(len, sets))} rows; lower batch.queries"
            )
        for number in generator.permutation(len(batches)):
            yield epoch, *batches[number]
            done += 1
            if done == recipe.steps:
                return
        epoch += 1


def _batches(data: DataSet, size: int, generator: np.random.Generator) -> Iterator[list[int]]:
    """Yield full batches of a shuffled data set; nothing that is one-of-a-kind twice in one.

    A row that doubles another in the batch that is being filled goes to the end of the queue.
    """
    waiting = deque(generator.permutation(len(data)).tolist())
    while len(waiting) >= size:
        batch: list[int] = []
        doubles: list[int] = []
        batch_hashes: set[int] = set()
        while waiting and len(batch) < size:
            row = waiting.popleft()
            hashes = set(data.hashes[row].tolist())
            if hashes & batch_hashes:
                doubles.append(row)
            else:
                batch_hashes |= hashes
                batch.append(row)
        if len(batch) < size:
            return
        yield batch
        waiting.extend(doubles)


def _groups(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _examples(
    data: DataSet, members: Sequence[Row], recipe: TuneRecipe, generator: np.random.Generator
) -> list[int]:
    """Draw a group's examples: rows of its data set that share no text with its members."""
    count = int(generator.integers(recipe.examples.least, recipe.examples.most + 1))
    taken = {text_hash(text) for row in members for text in (row.query, *row.pos)}
    examples: list[int] = []
    # a few more than are needed, as some may be members
    for index in generator.integers(len(data), size=8 * count + 8).tolist():
        if len(examples) == count:
            break
        row = data.rows[index]
        texts = {text_hash(text) for text in (row.query, *row.pos)}
        if not texts & taken:
            taken |= texts
            examples.append(index)
    return examples
