"""What tests read of folders, and change in their files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a file's object as parsed."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_tensors(path: Path, edit: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    """Rewrite a weights file; None removes."""
    edited = {name: edit(name, tensor) for name, tensor in load_file(path).items()}
    left = {name: tensor for name, tensor in edited.items() if tensor is not None}
    save_file(left, path, metadata={"format": "pt"})
