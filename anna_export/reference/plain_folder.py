"""Folders that libraries can open: without wrappers' parts in names, and what is left over.

transformers and peft load tensors under other names than their own as nothing: what a wrapper left
in them is taken out beforehand. What the libraries make of the tensors stays theirs.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anna_export.files.json_file import read_json
from anna_export.files.model_folders import MODEL
from anna_export.weights.adapter import WEIGHTS_FILE
from anna_export.weights.checkpoint import INDEX_FILE, SINGLE_FILE, weight_files
from anna_export.weights.names import is_replaced, saved_name, trained_name
from anna_export.weights.safetensors_files import DTYPES, header_bytes, read_header

# a changed file's name → what writes it
_Changes = dict[str, Callable[[Path], object]]


@contextmanager
def plain_model(model: Path, *, weights: bool = True) -> Iterator[Path]:
    """Give the model's folder, or where it must be changed, one of links and changed copies.

    Args:
        model: A base that a Checkpoint could open.
        weights: Whether its weights are to be read; if not, a file without tensors is in their
            place, for libraries map what they find.
    """
    config = read_json(model / MODEL)
    quantised = config.pop("quantization_config", None)
    changes: _Changes = {MODEL: _json(config)} if quantised else {}
    changes |= _renamed_weights(model) if weights else _no_weights(model)
    with _changed(model, changes) as folder:
        yield folder


def _renamed_weights(model: Path) -> _Changes:
    changes: _Changes = {
        path.name: _renamed(path, trained_name)
        for path in weight_files(model)
        if any(key != trained_name(key) for key in read_header(path))
    }
    if changes and (model / INDEX_FILE).exists():
        index = read_json(model / INDEX_FILE)
        index["weight_map"] = {trained_name(k): file for k, file in index["weight_map"].items()}
        changes[INDEX_FILE] = _json(index)
    return changes


def _no_weights(model: Path) -> _Changes:
    absent = (*(path.name for path in weight_files(model)), INDEX_FILE)
    changes: _Changes = dict.fromkeys(absent, _nothing)
    return changes | {SINGLE_FILE: lambda path: path.write_bytes(header_bytes({}))}


def _nothing(path: Path) -> None:
    """Write no file."""


@contextmanager
def plain_adapter(adapter: Path) -> Iterator[Path]:
    """Give the adapter's folder, or where names must be changed, one of links and a copy."""
    path = adapter / WEIGHTS_FILE
    plain = all(key == saved_name(key) and not is_replaced(key) for key in read_header(path))
    with _changed(adapter, {} if plain else {path.name: _renamed(path, saved_name)}) as folder:
        yield folder


@contextmanager
def _changed(folder: Path, changes: _Changes) -> Iterator[Path]:
    if not changes:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        for path in folder.iterdir():
            if path.name not in changes:
                (copy / path.name).symlink_to(path.resolve())
        for name, write in changes.items():
            write(copy / name)
        yield copy


def _json(value: dict[str, Any]) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(value), encoding="utf-8")


def _renamed(source: Path, rename: Callable[[str], str]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        tensors = {
            rename(key): tensor
            for key, tensor in read_header(source).items()
            if tensor.dtype in DTYPES and not is_replaced(key)
        }
        with path.open("wb") as file:
            file.write(header_bytes({n: (t.torch_dtype, t.shape) for n, t in tensors.items()}))
            for tensor in tensors.values():
                file.write(tensor.read_bytes().numpy().data)

    return write
