"""What a run measures of itself, step by step: plain CSV, and TensorBoard where it is asked for."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, Self

from anna_export.errors import ExtraError


class _Writer(Protocol):
    def add_scalar(self, name: str, value: float, step: int) -> None: ...
    def close(self) -> None: ...


class TrainingLog:
    """A table of numbers by step.

    Args:
        path: The CSV file; rows of steps after `done`, left by a run that was killed, are dropped.
        columns: Of numbers, beside the step.
        done: Steps that were done before.
        tensorboard: Folder of TensorBoard's own files; None: none are written.

    Raises:
        ExtraError: If TensorBoard is asked for and not installed.
    """

    def __init__(
        self, path: Path, columns: tuple[str, ...], done: int, tensorboard: Path | None = None
    ) -> None:
        self._path, self._columns = path, ("step", *columns)
        earlier = [row for row in read_log(path) if int(row["step"]) <= done]
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, self._columns)
            table.writeheader()
            table.writerows(earlier)
        self._board = None if tensorboard is None else _open_board(tensorboard, done)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one step's numbers."""
        with self._path.open("a", encoding="utf-8", newline="") as file:
            texts = {name: f"{value:.6g}" for name, value in values.items()}
            csv.DictWriter(file, self._columns).writerow({"step": step, **texts})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{self._path.stem}/{name}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[dict[str, str]]:
    """Return what a log's file holds, as texts by column; nothing where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        # the last row of a killed run may be cut off
        return [row for row in csv.DictReader(file) if None not in row.values()]


def _open_board(folder: Path, done: int) -> _Writer:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ExtraError(
            "expected tensorboard for run.tensorboard, found none; pip install tensorboard, or set "
            "it to false"
        ) from None
    # what a killed run wrote of later steps is hidden
    return SummaryWriter(str(folder), purge_step=done + 1)
