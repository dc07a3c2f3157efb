"""Whether tensors are a model's own, by name and by shape; which of the two is wrong, is named."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from anna_export.errors import MissingError, ShapeError, UnsupportedError
from anna_export.spec import EMBEDDING_WEIGHT
from anna_export.weights.adapter import Adapter
from anna_export.weights.safetensors_files import StoredTensor

Shapes = Mapping[str, tuple[int, ...]]
_SAVE_AGAIN: Final = "save it again with save_pretrained"
_RESIZED: Final = (
    "the base was resized in training, and the adapter does not bring that embedding; resize the "
    "base alike and save it"
)


def require_all(
    folder: Path, shapes: Shapes, base: Mapping[str, StoredTensor], replaced: set[str]
) -> None:
    """Refuse a base that lacks a weight, has one too many, or one of another shape.

    Args:
        folder: The base's.
        shapes: Every weight of the model.
        base: The base's tensors, by weight.
        replaced: Weights that an adapter brings: the base's may have another shape.

    Raises:
        MissingError: If a weight is missing.
        UnsupportedError: If there is one too many.
        ShapeError: If one has another shape.
    """
    missing = [name for name in shapes if name not in base]
    extra = [base[name].key for name in base if name not in shapes]
    if missing:
        hint = "download the model again"
        if extra:
            hint = f"these are names of no such model: {_some(extra)}; {_SAVE_AGAIN}"
        raise MissingError(
            f"expected the weight {missing[0]} in {folder}, found none "
            f"({len(missing)} of {len(shapes)} missing): {hint}"
        )
    if extra:
        raise UnsupportedError(
            f"expected only the weights of its decoder in {folder}, found {_some(extra)} "
            f"beside the {len(shapes)} by config.json; is that file this model's?"
        )
    for name, shape in shapes.items():
        if base[name].shape != shape and name not in replaced:
            raise ShapeError(
                f"expected {name} of shape {shape} by config.json, found {base[name].shape} "
                f"in {base[name].path}; are both files of one model?"
            )


def require_fit(adapter: Adapter, shapes: Shapes) -> None:
    """Refuse an adapter that changes what the base does not have.

    Raises:
        UnsupportedError: If a name fits nothing.
        ShapeError: If a shape is another than the base's.
    """
    changed: dict[str, tuple[tuple[int, ...], str]]
    changed = {name: (delta.shape, delta.a.key) for name, delta in adapter.deltas.items()}
    changed |= {name: (tensor.shape, tensor.key) for name, tensor in adapter.replaced.items()}
    for name, (shape, key) in changed.items():
        if name not in shapes and name.endswith(".bias"):
            raise UnsupportedError(
                f"expected no bias of {name.removesuffix('.bias')}, which the base has none of, "
                f"found {key} in {adapter.folder}; train with bias none"
            )
        if name not in shapes:
            raise UnsupportedError(
                f"expected targets that the base has, found {name.removesuffix('.weight')} in "
                f"{adapter.folder}: {_unfit(adapter, name, shape, key, shapes)}"
            )
        if shape != shapes[name]:
            resized = name == EMBEDDING_WEIGHT and shape[1:] == shapes[name][1:]
            raise ShapeError(
                f"expected {shapes[name]} for {name}, found {shape} in {adapter.folder}: "
                f"{_RESIZED if resized else _another_base(adapter)}"
            )
    rows = adapter.token_rows
    vocab_size, dim = shapes[EMBEDDING_WEIGHT]
    if rows and (rows.rows.shape[1] != dim or max(rows.indices) >= vocab_size):
        raise ShapeError(
            f"expected trained rows of length {dim} below {vocab_size}, found "
            f"{rows.rows.shape[1]} and {max(rows.indices)} in {adapter.folder}: "
            f"{_RESIZED if rows.rows.shape[1] == dim else _another_base(adapter)}"
        )


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _unfit(adapter: Adapter, name: str, shape: tuple[int, ...], key: str, shapes: Shapes) -> str:
    """Say whether its shape, or a layer beyond the last, is another base's; else name the name."""
    if shape not in shapes.values() or re.sub(r"^layers\.\d+\.", "layers.0.", name) in shapes:
        return _another_base(adapter)
    return f"its shape fits, its name ({key}) does not; {_SAVE_AGAIN}"


def _another_base(adapter: Adapter) -> str:
    complaint = "this adapter is for another base model"
    return f"{complaint}, made for {adapter.made_for}" if adapter.made_for else complaint
