"""Folders of a base and of adapters: which were given, and whether each is one at all."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from anna_export.errors import InputError, MissingError, UnsupportedError
from anna_export.files.hub_cache import hint_below

# one adapter, several that are merged in this order, or none
Adapters = Path | Sequence[Path] | None
ADAPTER: Final = "adapter_config.json"
MODEL: Final = "config.json"
# what it makes a folder, the field to give that as, and the key by which it is known: modules of
# sentence-transformers have a config.json too
_KINDS: Final = {
    ADAPTER: ("an adapter", "`adapter`", '"peft_type"'),
    MODEL: ("a model", "`model`", '"model_type"'),
}
# OWNER/NAME, or the address of its page, of which a path keeps one slash
_REPOSITORY: Final = re.compile(
    r"(?:(?:https?:/+)?(?:huggingface\.co|hf\.co)/)?([A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*)"
)


def in_order(adapter: Adapters) -> tuple[Path, ...]:
    """Return the folders of the adapters, in the order they are merged in."""
    if adapter is None:
        return ()
    return (adapter,) if isinstance(adapter, Path) else tuple(adapter)


def from_last(adapter: Adapters) -> Iterator[Path]:
    """Give the folders of the adapters, the last first: what it brings, counts."""
    yield from reversed(in_order(adapter))


def require_folder(folder: Path) -> None:
    """Refuse what is no folder; a repository of a hub is told how it becomes one.

    Raises:
        InputError: If it is a file.
        MissingError: If there is nothing of the name.
    """
    if folder.is_dir():
        return
    if folder.exists():
        raise InputError(f"expected a folder, found a file at {folder}; name the folder it is in")
    repository = _REPOSITORY.fullmatch(str(folder))
    if repository and not Path(folder.parts[0]).exists():
        name = repository[1]
        target = name.rpartition("/")[2]
        raise MissingError(
            f"expected a folder, found none at {folder}; if it is a repository of the Hugging Face "
            f"Hub, download it with hf download {name} --local-dir {target}, and name the folder "
            f"{target}"
        )
    raise MissingError(
        f"expected a folder, found none at {folder}; models, adapters and artifacts are read from "
        "disk"
    )


def require_file(folder: Path, name: str) -> Path:
    """Return the path of the file that makes a folder an adapter's or a model's.

    Args:
        folder: What was given.
        name: ADAPTER or MODEL.

    Raises:
        MissingError: If there is none, naming what lies in its place.
        UnsupportedError: If the folder is of a layout of Mistral's own.
    """
    path = folder / name
    if path.is_file():
        return path
    if (folder / "params.json").is_file():
        _refuse_mistrals(folder, name)
    raise MissingError(f"expected the file {path}, found none; {_hint(folder, name)}")


def _hint(folder: Path, name: str) -> str:
    for other, (called, field, _) in _KINDS.items():
        if (folder / other).is_file():
            return f"it holds {called}: give it as {field}"
    return hint_below(folder, name, _KINDS[name][2]) or f"is {folder} the right folder?"


def _refuse_mistrals(folder: Path, name: str) -> None:
    if name == ADAPTER and (folder / "lora.safetensors").is_file():
        raise UnsupportedError(
            f"expected an adapter of peft ({ADAPTER}), found mistral-finetune's own layout "
            f"(lora.safetensors, params.json) in {folder}; save the merged model there "
            "(save_adapters: false), convert it with transformers' "
            "convert_mistral_weights_to_hf.py and give it as `model`"
        )
    if name == MODEL and any(folder.glob("consolidated*")):
        raise UnsupportedError(
            f"expected a Hugging Face model ({MODEL}), found Mistral's own layout (params.json, "
            f"consolidated weights) in {folder}; convert it with transformers' "
            "convert_mistral_weights_to_hf.py"
        )
