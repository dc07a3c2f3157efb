"""Full-size models of real shapes with random weights, and a LoRA over their linear layers."""

import json
import math
import random
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import save_file

from anna_export.files.stream import Part, write_parts
from anna_export.progress import Progress
from anna_export.reference.model import decoder_config
from anna_export.spec import EmbeddingSpec, QueryScaling, RotaryKind, RotaryScaling
from anna_export.weights.safetensors_files import header_bytes
from demo.tokenizer import build_tokenizer, load_sentencepiece, save_tokenizer

SHARD_BYTES = 4_950_000_000
RANK, ALPHA = 64, 32
# Weights are slices of one pool of normal numbers, each from a place of its own: as good as fresh
# ones for copying, merging and spot checks, and a hundred times quicker to make.
_POOL_NUMBERS = (1 << 24) + 43
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def options(parser: ArgumentParser) -> None:
    """Add the options of every benchmark of this model."""
    parser.add_argument("--layers", type=int, help="Layers of the model (default: all).")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build"),
        help="Where models go; removed at the end (default: build).",
    )


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Give a folder for models, which are removed at the end; its parent is made if missing."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"anna-{name}-", dir=parent) as folder:
        yield Path(folder)


def mistral_v01(layers: int = 32) -> EmbeddingSpec:
    """Return the numbers of Mistral-7B-v0.1, or of a slice of it."""
    return EmbeddingSpec(
        vocab_size=32000,
        dim=4096,
        ffn_dim=14336,
        layers=layers,
        heads=32,
        kv_heads=8,
        head_dim=128,
        norm_eps=1e-5,
        rope_theta=10000.0,
        max_positions=32768,
        sliding_window=4096,
    )


def qwen3_8b(layers: int = 36) -> EmbeddingSpec:
    """Return the numbers of Qwen3-Embedding-8B, or of a slice of it."""
    return EmbeddingSpec(
        vocab_size=151_936,
        dim=4096,
        ffn_dim=12288,
        layers=layers,
        heads=32,
        kv_heads=8,
        head_dim=128,
        norm_eps=1e-6,
        rope_theta=1_000_000.0,
        max_positions=40960,
        sliding_window=None,
        family="qwen3",
    )


def nemotron_3_embed_8b(layers: int = 34) -> EmbeddingSpec:
    """Return the numbers of Nemotron-3-Embed-8B, bidirectional, or of a slice of it."""
    return EmbeddingSpec(
        vocab_size=131_072,
        dim=4096,
        ffn_dim=14336,
        layers=layers,
        heads=32,
        kv_heads=8,
        head_dim=128,
        norm_eps=1e-5,
        rope_theta=1_000_000.0,
        max_positions=262_144,
        sliding_window=None,
        family="ministral3",
        causal=False,
        rope_scaling=RotaryScaling(RotaryKind.YARN, 16.0, original_positions=16_384),
        query_scaling=QueryScaling(0.1, 16_384),
    )


def gemma3_12b(layers: int = 48) -> EmbeddingSpec:
    """Return the numbers of Gemma 3 12B's text model, or of a slice of it."""
    return EmbeddingSpec(
        vocab_size=262_208,
        dim=3840,
        ffn_dim=15360,
        layers=layers,
        heads=16,
        kv_heads=8,
        head_dim=256,
        norm_eps=1e-6,
        rope_theta=1_000_000.0,
        max_positions=131_072,
        sliding_window=1024,
        family="gemma3_text",
        full_attention_layers=tuple(range(5, layers, 6)),
        rope_scaling=RotaryScaling(RotaryKind.LINEAR, 8.0),
        windowed_rope_theta=10_000.0,
        query_scalar=256,
    )


# By the name that is asked for; each gives the whole model, or so many layers of it.
SHAPES: Final = {
    "mistral-7b": mistral_v01,
    "qwen3-8b": qwen3_8b,
    "nemotron-3-embed-8b": nemotron_3_embed_8b,
    "gemma3-12b": gemma3_12b,
}


def write_base(folder: Path, spec: EmbeddingSpec, progress: Progress | None = None) -> int:
    """Write the model as hubs hold it, bf16 in shards; return the bytes of its weight files."""
    folder.mkdir(parents=True)
    pool = _pool()
    shapes = spec.weight_shapes()
    sizes = {name: 2 * math.prod(shape) for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[name] for name in shards[-1]) + size > SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    weight_map: dict[str, str] = {}
    done, total = 0, sum(sizes.values())
    for index, names in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        # hubs hold the causal model, whose decoder's weights start with "model."
        header = header_bytes({f"model.{name}": (torch.bfloat16, shapes[name]) for name in names})
        parts, offset = [Part(0, len(header), partial(bytes, header))], len(header)
        for name in names:
            parts.append(Part(offset, sizes[name], partial(_weight, pool, name, shapes[name])))
            offset += sizes[name]
        write_parts(folder / file, parts)
        weight_map |= {f"model.{name}": file for name in names}
        done += sum(sizes[name] for name in names)
        if progress is not None:
            progress(done, total)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text(json.dumps(_config(spec), indent=2))
    save_tokenizer(build_tokenizer(load_sentencepiece(), 4096), folder)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def write_adapter(folder: Path, spec: EmbeddingSpec) -> None:
    """Write a peft LoRA folder of rank 64 over the seven linear layers of every block."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, shape in spec.weight_shapes().items():
        if len(shape) == 2 and name.split(".")[-2] in LINEAR:
            module = f"base_model.model.model.{name.removesuffix('.weight')}"
            for factor, size in (("A", (RANK, shape[1])), ("B", (shape[0], RANK))):
                tensor = torch.randn(size, generator=generator) * 0.02
                tensors[f"{module}.lora_{factor}.weight"] = tensor
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(LINEAR),
        "bias": "none",
        "base_model_name_or_path": "base",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _pool() -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return (
        (torch.randn(_POOL_NUMBERS, generator=generator) * 0.02)
        .bfloat16()
        .view(torch.int16)
        .numpy()
    )


def _weight(pool: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16).view(torch.int16).numpy()
    start = random.Random(name).randrange(len(pool))
    numbers = np.empty(math.prod(shape), dtype=np.int16)
    done = 0
    while done < len(numbers):
        piece = pool[start : start + len(numbers) - done]
        numbers[done : done + len(piece)] = piece
        done, start = done + len(piece), 0
    return numbers


def _config(spec: EmbeddingSpec) -> dict[str, object]:
    config: dict[str, object] = decoder_config(spec).to_dict()
    config |= {"architectures": [spec.of_family.decoder], "dtype": "bfloat16"}
    return config | {"bos_token_id": 1, "eos_token_id": 2}
