"""A LoRA adapter: its deltas and replaced weights, by the base weight they change."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from anna_export.errors import DamagedError, InputError, MissingError, ShapeError, UnsupportedError
from anna_export.safetensors_files import StoredTensor, read_header
from anna_export.spec import read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# Settings that change what the adapter computes, or the base it was made for, in ways that
# W + s * B @ A does not say. Each is refused by its own name.
_UNSUPPORTED: Final = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "layer_replication",
    "megatron_config",
    "alora_invocation_tokens",
    "target_parameters",
    "monteclora_config",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "fan_in_fan_out",
)
# Initialisations that also rewrite the base weights when the adapter is made.
_BASE_CHANGING_INITS: Final = ("pissa", "corda", "olora", "mica", "lora_ga", "loftq")
_EMBEDDING = "embed_tokens"


@dataclass(frozen=True, slots=True)
class Delta:
    """s * B @ A of one linear layer, or of the embedding (transposed)."""

    a: StoredTensor  # (r, in); embedding: (r, vocabulary)
    b: StoredTensor  # (out, r); embedding: (dim, r)
    scale: float
    embedding: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight this delta is added to."""
        rows, columns = self.b.shape[0], self.a.shape[1]
        return (columns, rows) if self.embedding else (rows, columns)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (out, r) and (r, in) float32 factors; their product times scale is the delta."""
        a, b = self.a.read().float(), self.b.read().float()
        return (a.T.contiguous(), b.T.contiguous()) if self.embedding else (b, a)


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of the embedding that were trained by themselves (trainable_token_indices)."""

    indices: tuple[int, ...]
    rows: StoredTensor  # (len(indices), dim)


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter changes, by base weight name (as in a MistralModel's state dict)."""

    folder: Path
    deltas: Mapping[str, Delta] = field(default_factory=dict)
    replaced: Mapping[str, StoredTensor] = field(default_factory=dict)
    token_rows: TokenRows | None = None

    def changed(self) -> int:
        """How many of the base's weights it changes."""
        rows = {"embed_tokens.weight"} if self.token_rows else set()
        return len(set(self.deltas) | set(self.replaced) | rows)


def read_adapter(folder: Path) -> Adapter:
    """Read a peft LoRA folder.

    Raises:
        MissingError: If the folder or one of its files does not exist.
        UnsupportedError: If it is another kind than LoRA, or has a feature refused by name.
        DamagedError: If a LoRA factor lacks its partner.
    """
    config = _read_config(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.exists() and (folder / "adapter_model.bin").exists():
        raise UnsupportedError(
            f"expected {weights}, found adapter_model.bin: pickle files can run code and are not "
            "read; save the adapter again with peft's save_pretrained"
        )
    factors: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    token_rows = None
    for key, tensor in read_header(weights).items():
        name = base_name(key)
        match = re.fullmatch(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?", name)
        if match:
            factors.setdefault(match[1], {})[match[2]] = tensor
        elif name.endswith(".token_adapter.trainable_tokens_delta"):
            token_rows = _token_rows(config, name, tensor)
        elif "lora_" in name or "magnitude" in name:
            raise UnsupportedError(f"expected LoRA factors A and B, found {key} in {weights}")
        else:
            # modules_to_save; an embedding that is also a LoRA target is stored as base_layer
            replaced[name.replace(".base_layer.", ".")] = tensor
    deltas = {
        f"{module}.weight": _delta(config, weights, module, pair)
        for module, pair in factors.items()
    }
    if not (deltas or replaced or token_rows):
        raise InputError(f"expected LoRA tensors in {weights}, found none")
    return Adapter(folder, deltas, replaced, token_rows)


def base_name(key: str) -> str:
    """Return the weight's name in a MistralModel's state dict, whatever wraps that model."""
    return key.removeprefix("base_model.model.").removeprefix("model.")


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise MissingError(f"expected an adapter folder, found no folder {folder}")
    config = read_json(folder / CONFIG_FILE)
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(
            f"expected a LoRA adapter (peft_type LORA), found {config.get('peft_type')!r} in "
            f"{folder / CONFIG_FILE}"
        )
    for name in _UNSUPPORTED:
        if config.get(name):
            kind = "DoRA (use_dora)" if name == "use_dora" else name
            raise UnsupportedError(
                f"expected plain LoRA, found {kind} in {folder / CONFIG_FILE}: not supported; "
                "merge it with peft and export the merged model"
            )
    if config.get("bias", "none") != "none":
        raise UnsupportedError(
            f"expected bias none, found {config['bias']!r} in {folder / CONFIG_FILE}: "
            "a Mistral model has no biases"
        )
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(_BASE_CHANGING_INITS):
        raise UnsupportedError(
            f"expected an adapter over unchanged base weights, found init_lora_weights={init!r}, "
            "which rewrites them; convert it with peft's path_initial_model_for_weight_conversion"
        )
    return config


def _delta(
    config: dict[str, Any], weights: Path, module: str, pair: dict[str, StoredTensor]
) -> Delta:
    if set(pair) != {"A", "B"}:
        raise DamagedError(
            f"expected lora_A and lora_B of {module}, found only {sorted(pair)} in {weights}"
        )
    a, b = pair["A"], pair["B"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise ShapeError(
            f"expected lora_A (r, in) and lora_B (out, r) of {module}, found {a.shape} and "
            f"{b.shape} in {weights}"
        )
    rank = int(_pattern_value(config.get("rank_pattern"), module, config["r"]))
    if rank != a.shape[0]:
        raise ShapeError(
            f"expected rank {rank} for {module} by {CONFIG_FILE}, found {a.shape[0]} in {weights}"
        )
    alpha = float(_pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"]))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Delta(a, b, scale, embedding=module == _EMBEDDING)


def _pattern_value(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    # peft matches a pattern against the end of the module's full name; the part of that name
    # before "layers." depends on what wrapped the model, so both spellings are tried
    for pattern, value in (patterns or {}).items():
        if any(re.match(rf"(.*\.)?({pattern})$", name) for name in (module, f"model.{module}")):
            return value
    return default


def _token_rows(config: dict[str, Any], name: str, tensor: StoredTensor) -> TokenRows:
    asked = config.get("trainable_token_indices")
    module = name.removesuffix(".token_adapter.trainable_tokens_delta")
    indices = asked.get(module) if isinstance(asked, dict) else asked
    if module != _EMBEDDING or not indices or len(indices) != tensor.shape[0]:
        raise UnsupportedError(
            f"expected trainable_token_indices of {_EMBEDDING}, one for each trained row, "
            f"found {tensor.shape[0]} rows of {module} and indices {indices}"
        )
    return TokenRows(tuple(int(index) for index in indices), tensor)
