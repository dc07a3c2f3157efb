"""Unfinished calibration, saved after every layer, so that an interrupted run can be resumed."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anna_export.files.atomic import staged_file


@dataclass(frozen=True, slots=True)
class CalibrationState:
    """How far a calibration is."""

    next_layer: int
    values: dict[str, Any]  # plain values
    tensors: dict[str, torch.Tensor]


class StateFile:
    """A folder's file with the state of one task; that of another task is not read.

    Args:
        folder: The folder; made when there is a state to save.
        task: Identifies what is calibrated: model, texts, format, versions.
    """

    def __init__(self, folder: Path, task: str) -> None:
        self._path = folder / "layers.safetensors"
        self._task = task

    def load(self) -> CalibrationState | None:
        """Return the saved state; None if there is none, or the file is damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("task") != self._task:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            values = json.loads(metadata["values"])
            return CalibrationState(int(metadata["next_layer"]), values, tensors)
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def save(
        self, next_layer: int, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> None:
        """Replace the file.

        Raises:
            SpaceError: If the disk fills up.
        """
        from safetensors.torch import save_file

        metadata = {
            "task": self._task,
            "next_layer": str(next_layer),
            "values": json.dumps(values),
        }
        folder = self._path.parent
        folder.mkdir(exist_ok=True)
        try:
            with staged_file(self._path) as aside:
                save_file({name: t.contiguous() for name, t in tensors.items()}, aside, metadata)
        except BaseException:
            with suppress(OSError):  # it stays where it holds an earlier state
                folder.rmdir()
            raise
