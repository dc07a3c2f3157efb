"""What a training run keeps while it lasts: checkpoints that appear whole, and what it came from.

A checkpoint is the adapter's weights and AdamW's moments. Rate, order and dropout are functions of
the step, so a run that goes on from one is the run that was never stopped.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anna_export.errors import DamagedError, InputError
from anna_export.files.atomic import staged_file, write_text

_RECORD: Final = "run.json"
_MINI_BATCH: Final = "mini-batch-tokens.txt"
_MOMENTS: Final = ("exp_avg", "exp_avg_sq")
# The newest, and one before it.
_MAX_CHECKPOINTS = 2


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of an unfinished run."""

    folder: Path

    def begin(self, made_from: Mapping[str, Any]) -> None:
        """Note what the run is made from, or hold it to what was noted.

        Raises:
            InputError: If something else is asked for now, naming it.
        """
        path = self.folder / _RECORD
        if not path.exists():
            write_text(path, json.dumps(made_from, indent=2, sort_keys=True) + "\n")
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise DamagedError(
                f"expected JSON in {path}, found something else; give `restart`"
            ) from None
        if changed := _changed(before, json.loads(json.dumps(made_from))):
            raise InputError(
                f"expected to go on with the run in {self.folder}, found changed: "
                f"{', '.join(changed)}; put it back, or give `restart` to begin anew"
            )

    def same_mini_batch(self, tokens: int) -> int:
        """Return the tokens of a mini-batch that the run began with, which are these if it begins.

        Other mini-batches are padded otherwise, so that sums would be rounded otherwise.
        """
        path = self.folder / _MINI_BATCH
        if not path.exists():
            write_text(path, f"{tokens}\n")
        return int(path.read_text(encoding="utf-8"))

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, step: int, weights: Mapping[str, Tensor], optimizer: torch.optim.AdamW) -> Path:
        """Write a checkpoint after so many steps, and drop old ones."""
        tensors = {f"weight.{name}": weight.detach() for name, weight in weights.items()}
        for name, weight in weights.items():
            for moment in _MOMENTS:
                tensors[f"{moment}.{name}"] = optimizer.state[weight][moment]
        target = self.folder / f"step-{step:08}.safetensors"
        with staged_file(target) as aside:
            save_file({name: part.contiguous() for name, part in tensors.items()}, aside)
        for old in self.checkpoints()[:-_MAX_CHECKPOINTS]:
            old.unlink()
        return target

    def load(self, weights: Mapping[str, Tensor], optimizer: torch.optim.AdamW) -> int:
        """Take up the newest checkpoint, and return its steps; 0 where there is none.

        Raises:
            DamagedError: If it cannot be read.
        """
        if not (checkpoints := self.checkpoints()):
            return 0
        path = checkpoints[-1]
        step = int(path.stem.removeprefix("step-"))
        try:
            with safe_open(path, framework="pt") as stored, torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(stored.get_tensor(f"weight.{name}"))
                    moments = {
                        moment: stored.get_tensor(f"{moment}.{name}").to(weight.device)
                        for moment in _MOMENTS
                    }
                    optimizer.state[weight] = {"step": torch.tensor(float(step)), **moments}
        except SafetensorError as error:
            raise DamagedError(
                f"expected a checkpoint in {path}, found: {error}; remove it to go on from the one "
                "before"
            ) from None
        return step


def _changed(before: Any, after: Any, path: str = "") -> list[str]:
    """Return what differs between two JSON values, by its path."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            difference
            for key in sorted(before.keys() | after.keys())
            for difference in _changed(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if before == after else [f"{path} (was {_short(before)}, is {_short(after)})"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]} …"
