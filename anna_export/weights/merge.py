"""Write the merged model as an ordinary Hugging Face folder, three tensors in memory at most."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from anna_export.files.atomic import require_absent, require_outside, staged, write_text
from anna_export.files.disk import require_disk
from anna_export.files.json_file import read_json
from anna_export.files.model_folders import Adapters, in_order
from anna_export.files.stream import Part, write_parts
from anna_export.progress import Progress
from anna_export.spec import EMBEDDING_WEIGHT, EmbeddingSpec
from anna_export.text.framing import (
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    TokenFraming,
    find_tokenizer,
    read_framing,
    require_end,
)
from anna_export.text.limit import LIMIT_FILE, find_limit_file
from anna_export.text.prompt_file import find_prompts
from anna_export.text.st_files import MODULES_FILE, write_modules, write_prompts
from anna_export.text.tokenizer_files import uncut_json
from anna_export.text.tokenizer_folder import write_tokenizer
from anna_export.weights.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, row_blocks
from anna_export.weights.modules import Modules
from anna_export.weights.safetensors_files import header_bytes

# The size model hubs split at.
SHARD_BYTES: Final = 5_000_000_000
CONFIG_FILE: Final = "config.json"


@dataclass(frozen=True, slots=True)
class Merged:
    """What was written."""

    folder: Path
    tensors: int
    changed: int
    size_bytes: int


def write_merged(
    model: Path,
    adapter: Adapters,
    out: Path,
    *,
    overwrite: bool = False,
    eos: bool | None = None,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Merged:
    """Merge base and adapters into a model folder of the base's own types.

    The folder holds what embeds, the decoder. A language head is left out: no embedding passes
    through it.

    Args:
        model: The base model's folder.
        adapter: The LoRA adapter's folder, or several in the order they are merged in.
        out: The folder to make.
        overwrite: Replace `out` if it exists.
        eos: Whether an end token follows a text, which the merged tokenizer then says; None asks
            the files.
        progress: Told the bytes done.
        shard_bytes: Largest weight file, unless one tensor is larger.

    Raises:
        AnnaError: If base or adapter cannot be used, or the folder not written.
    """
    require_outside(out, model, *in_order(adapter))
    require_absent(out, overwrite=overwrite, holding=CONFIG_FILE)
    checkpoint = Checkpoint.open(model, adapter)
    framing = _chosen(checkpoint, adapter, eos)
    shapes = checkpoint.spec.decoder_shapes()
    sizes = {
        name: math.prod(shape) * checkpoint.stored_dtype(name).itemsize
        for name, shape in shapes.items()
    }
    total = sum(sizes.values())
    shards = _shards(sizes, shard_bytes)
    with staged(out, overwrite=overwrite, holding=CONFIG_FILE) as folder:
        require_disk(out, total)
        weight_map: dict[str, str] = {}
        done = 0
        for index, names in enumerate(shards, start=1):
            file = SINGLE_FILE
            if len(shards) > 1:
                file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
            _write_shard(folder / file, checkpoint, names, sizes, progress, done)
            weight_map |= dict.fromkeys(names, file)
            done += sum(sizes[name] for name in names)
        if len(shards) > 1:
            index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_text(folder / INDEX_FILE, json.dumps(index_json, indent=2) + "\n")
        _copy_configuration(checkpoint, adapter, framing, folder)
        copy_modules(checkpoint.modules, checkpoint.spec, folder)
    changed = {name for lora in checkpoint.adapters for name in lora.changed()}
    return Merged(out, len(shapes), len(changed), total)


def _shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_shard(
    path: Path,
    checkpoint: Checkpoint,
    names: list[str],
    sizes: dict[str, int],
    progress: Progress | None,
    done: int,
) -> None:
    shapes = checkpoint.spec.decoder_shapes()
    header = header_bytes({name: (checkpoint.stored_dtype(name), shapes[name]) for name in names})
    parts, offset = [Part(0, len(header), lambda: header)], len(header)
    for name in names:
        # a table of embeddings may be larger than memory should hold
        blocks: Sequence[torch.Tensor | None] = [None]
        if name == EMBEDDING_WEIGHT:
            rows = shapes[name][0]
            blocks = row_blocks(rows, sizes[name] // rows)
        for block in blocks:
            size = sizes[name] if block is None else sizes[name] // shapes[name][0] * len(block)
            parts.append(Part(offset, size, partial(_bytes, checkpoint, name, block)))
            offset += size
    write_parts(path, parts, _among_shards(progress, done - len(header), sum(sizes.values())))


def _among_shards(progress: Progress | None, start: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _: progress(start + done, total)


def _bytes(checkpoint: Checkpoint, name: str, rows: torch.Tensor | None) -> np.ndarray:
    tensor = checkpoint.read(name, checkpoint.stored_dtype(name), rows=rows)
    return tensor.reshape(-1).view(torch.uint8).numpy()


def write_config(checkpoint: Checkpoint, folder: Path, **changes: Any) -> None:
    """Write the base's config.json as that of the merged decoder, with these settings changed."""
    config = read_json(checkpoint.folder / CONFIG_FILE)
    config.pop("quantization_config", None)  # left over: the weights are plain
    spec = checkpoint.spec
    config |= {"architectures": [spec.of_family.decoder], "vocab_size": spec.vocab_size}
    write_text(folder / CONFIG_FILE, json.dumps(config | changes, indent=2) + "\n")


def _chosen(checkpoint: Checkpoint, adapter: Adapters, eos: bool | None) -> TokenFraming | None:
    """Return the framing with the end token that was chosen; None where the files decide."""
    if eos is not None:
        return read_framing(checkpoint.folder, checkpoint.spec, None, adapter=adapter, eos=eos)
    # the merged folder lists modules: what files leave open, nobody is asked for again
    require_end(checkpoint.folder, checkpoint.spec, adapter)
    return None


def _copy_configuration(
    checkpoint: Checkpoint, adapter: Adapters, framing: TokenFraming | None, folder: Path
) -> None:
    write_config(checkpoint, folder)
    tokenizer = find_tokenizer(checkpoint.folder, adapter)
    for name in TOKENIZER_FILES:
        _copy_file(tokenizer, folder, name)
    write_text(folder / TOKENIZER_FILE, uncut_json(tokenizer / TOKENIZER_FILE))
    if framing is not None:
        write_tokenizer(tokenizer, folder, framing)
    if (limit_file := find_limit_file(tokenizer, checkpoint.folder)) is not None:
        shutil.copyfile(limit_file, folder / LIMIT_FILE)
    _copy_file(checkpoint.folder, folder, "generation_config.json")
    prompts = find_prompts(checkpoint.folder, adapter)
    write_prompts(folder, prompts, checkpoint.modules.similarity)


def copy_modules(modules: Modules, spec: EmbeddingSpec, folder: Path) -> None:
    """Copy what stands behind the decoder; without, sentence-transformers takes the mean."""
    if modules.folder is None:
        write_modules(folder, spec)
        return
    shutil.copyfile(modules.folder / MODULES_FILE, folder / MODULES_FILE)
    for part in modules.parts:
        shutil.copytree(modules.folder / part, folder / part, dirs_exist_ok=True)


def _copy_file(source: Path, folder: Path, name: str) -> None:
    if (source / name).exists():
        shutil.copyfile(source / name, folder / name)
