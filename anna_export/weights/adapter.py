"""A LoRA adapter: its deltas and replaced weights, by the base weight they change."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from anna_export.errors import DamagedError, InputError, ShapeError, UnsupportedError
from anna_export.files.json_file import read_json
from anna_export.files.model_folders import ADAPTER, require_file, require_folder
from anna_export.spec import EMBEDDING_WEIGHT
from anna_export.weights.names import adapter_name, by_name, trained_name
from anna_export.weights.safetensors_files import StoredTensor, read_header

CONFIG_FILE = ADAPTER
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
    "velora_config",
    "fan_in_fan_out",
)
# Initialisations that also rewrite the base weights when the adapter is made.
_BASE_CHANGING_INITS: Final = ("pissa", "corda", "olora", "lora_ga", "loftq")
# What to do about an adapter that is more than LoRA, and about one that contradicts itself.
_BY_PEFT: Final = "merge it with peft and export the merged model"
_SAVE_AGAIN: Final = "save the adapter again with peft's save_pretrained"
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
    """What an adapter changes, by base weight name (as in its decoder's state dict)."""

    folder: Path
    deltas: Mapping[str, Delta] = field(default_factory=dict)
    replaced: Mapping[str, StoredTensor] = field(default_factory=dict)
    token_rows: TokenRows | None = None
    made_for: str | None = None  # the base model, as its config names it

    def changed(self) -> set[str]:
        """Return the names of the base's weights that it changes."""
        rows = {EMBEDDING_WEIGHT} if self.token_rows else set()
        return set(self.deltas) | set(self.replaced) | rows


def read_adapter(folder: Path) -> Adapter:
    """Read a peft LoRA folder.

    Raises:
        MissingError: If the folder or one of its files does not exist.
        UnsupportedError: If it is another kind than LoRA, or has a feature refused by name.
        InputError: If a setting is missing or of the wrong type, or nothing is adapted.
        DamagedError: If a LoRA factor lacks its partner.
        ShapeError: If the factors' shapes contradict one another or the settings.
    """
    config = _read_config(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.exists() and (folder / "adapter_model.bin").exists():
        raise UnsupportedError(
            f"expected {weights}, found adapter_model.bin: pickle files can run code and are not "
            f"read; {_SAVE_AGAIN}"
        )
    factors: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    token_rows = None
    for name, tensor in by_name(read_header(weights).values(), adapter_name).items():
        match = re.fullmatch(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?", name)
        if match:
            factors.setdefault(match[1], {})[match[2]] = tensor
        elif name.endswith(".token_adapter.trainable_tokens_delta"):
            token_rows = _token_rows(config, name, tensor)
        else:
            _require_replacement(weights, name, tensor)
            # modules_to_save; an embedding that is also adapted is stored as its base layer
            name = name.replace(".token_adapter.", ".").replace(".base_layer.", ".")
            replaced[name] = tensor
    deltas = {
        f"{module}.weight": _delta(config, weights, module, pair)
        for module, pair in factors.items()
    }
    if not (deltas or replaced or token_rows):
        raise InputError(f"expected LoRA tensors in {weights}, found none; {_SAVE_AGAIN}")
    if token_rows and f"{_EMBEDDING}.weight" in deltas:
        raise UnsupportedError(
            f"expected LoRA of {_EMBEDDING} or trained rows of it, found both in {weights}; "
            f"{_BY_PEFT}"
        )
    made_for = config.get("base_model_name_or_path")
    return Adapter(folder, deltas, replaced, token_rows, str(made_for) if made_for else None)


def _require_replacement(weights: Path, name: str, tensor: StoredTensor) -> None:
    """Refuse what is neither a LoRA factor nor a weight of a decoder."""
    if "lora_" in name or "magnitude" in name:
        raise UnsupportedError(
            f"expected LoRA factors A and B, found {tensor.key} in {weights}; {_BY_PEFT}"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    require_folder(folder)
    config = read_json(require_file(folder, CONFIG_FILE))
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(
            f"expected a LoRA adapter (peft_type LORA), found {config.get('peft_type')!r} in "
            f"{folder / CONFIG_FILE}; {_BY_PEFT}"
        )
    for name in _UNSUPPORTED:
        if config.get(name):
            kind = "DoRA (use_dora)" if name == "use_dora" else name
            raise UnsupportedError(
                f"expected plain LoRA, found {kind} in {folder / CONFIG_FILE}: not supported; "
                f"{_BY_PEFT}"
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
            f"expected lora_A and lora_B of {module}, found only {sorted(pair)} in {weights}; "
            f"{_SAVE_AGAIN}"
        )
    a, b = pair["A"], pair["B"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise ShapeError(
            f"expected lora_A (r, in) and lora_B (out, r) of {module}, found {a.shape} and "
            f"{b.shape} in {weights}; {_SAVE_AGAIN}"
        )
    # patterns speak of the module as it was named in training, with or without a language head
    trained = trained_name(a.key).rpartition(".lora_")[0]
    rank = _setting(config, "rank_pattern", "r", trained)
    if rank != a.shape[0] or rank < 1:
        raise ShapeError(
            f"expected rank {rank:g} for {module} by {CONFIG_FILE}, found {a.shape[0]} in "
            f"{weights}; use the two files of one training"
        )
    alpha = _setting(config, "alpha_pattern", "lora_alpha", trained)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Delta(a, b, scale, embedding=module == _EMBEDDING)


def _setting(config: dict[str, Any], patterns: str, default: str, module: str) -> float:
    """Return a module's rank or alpha by peft's rule: the first pattern to match its end wins."""
    setting = config.get(default)
    by_pattern = config.get(patterns) or {}
    try:
        for pattern, value in by_pattern.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                setting = value
                break
    except (AttributeError, re.error) as error:
        raise InputError(
            f"expected regular expressions and numbers as {patterns} in {CONFIG_FILE}, "
            f"found {by_pattern}: {error}"
        ) from None
    if (
        isinstance(setting, bool)
        or not isinstance(setting, int | float)
        or not math.isfinite(setting)
    ):
        raise InputError(
            f"expected a number as {default} of {module} in {CONFIG_FILE}, found {setting!r}"
        )
    return setting


def _token_rows(config: dict[str, Any], name: str, tensor: StoredTensor) -> TokenRows:
    declared = config.get("trainable_token_indices")
    module = name.removesuffix(".token_adapter.trainable_tokens_delta")
    if isinstance(declared, dict):
        declared = {key.removeprefix("model."): value for key, value in declared.items()}.get(
            module
        )
    indices = declared if isinstance(declared, list) else []
    valid = all(isinstance(index, int) and index >= 0 for index in indices)
    if module != _EMBEDDING or not valid or (len(indices),) != tensor.shape[:-1]:
        raise UnsupportedError(
            f"expected trainable_token_indices of {_EMBEDDING} in {CONFIG_FILE}, one for each "
            f"trained row, found rows of {module} of shape {tensor.shape} and indices {declared}"
        )
    return TokenRows(tuple(indices), tensor)
