"""Reads a model's numbers from its config.json."""

import math
from pathlib import Path
from typing import Any, Final

from anna_export.errors import InputError, UnsupportedError
from anna_export.files.json_file import read_json
from anna_export.files.model_folders import MODEL, require_file, require_folder
from anna_export.spec.model import EmbeddingSpec
from anna_export.spec.unsupported import refuse_unsupported_architecture

# What an absent key means to transformers.
_DEFAULTS: Final = {
    "head_dim": None,
    "hidden_act": "silu",
    "is_causal": True,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}


def read_spec(model: Path) -> EmbeddingSpec:
    """Read the spec of a Hugging Face model folder.

    Raises:
        MissingError: If the folder or its config.json does not exist.
        UnsupportedError: If it holds a model of another shape than Mistral's.
    """
    require_folder(model)
    path = require_file(model, MODEL)
    config = _DEFAULTS | read_json(path)
    rope = _rope(path, config)
    _refuse_unsupported(path, config, rope)
    try:
        dim, heads = _integer(config, "hidden_size"), _integer(config, "num_attention_heads")
        return EmbeddingSpec(
            vocab_size=_integer(config, "vocab_size"),
            dim=dim,
            ffn_dim=_integer(config, "intermediate_size"),
            layers=_integer(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=_integer(config, "num_key_value_heads"),
            head_dim=(
                dim // max(heads, 1) if config["head_dim"] is None else _integer(config, "head_dim")
            ),
            norm_eps=_number(config, "rms_norm_eps"),
            # transformers 5 writes rope_parameters; before, rope_theta stood beside the rest
            rope_theta=_number(config | rope, "rope_theta"),
            max_positions=_integer(config, "max_position_embeddings"),
            sliding_window=_window(path, config),
        )
    except KeyError as error:
        raise InputError(
            f"expected the key {error} in {path}, found none; use the config.json that came with "
            "the weights"
        ) from None
    except (TypeError, OverflowError) as error:
        raise InputError(
            f"expected numbers in {path}, found {error}; use the config.json that came with the "
            "weights"
        ) from None


def _number(config: dict[str, Any], key: str) -> float:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} as {key}")
    return value


def _integer(config: dict[str, Any], key: str) -> int:
    value = _number(config, key)
    if not isinstance(value, int):
        raise TypeError(f"{value!r} as {key}")
    return value


def _rope(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the rotary embedding's parameters: transformers takes rope_scaling before the others.

    Source: convert_rope_params_to_dict of transformers 5.23's modeling_rope_utils.
    """
    scaling, parameters = config.get("rope_scaling"), config.get("rope_parameters")
    rope = scaling or parameters or {}
    if not isinstance(rope, dict):
        raise InputError(f"expected an object as rope_parameters in {path}, found {rope!r}")
    if scaling and parameters and "rope_theta" not in config | rope:
        raise UnsupportedError(
            f"expected rope_theta in rope_scaling, which replaces rope_parameters, in {path}, "
            "found none; take rope_scaling out"
        )
    return rope


def _window(path: Path, config: dict[str, Any]) -> int | None:
    """Return the sliding window of all layers; None for none.

    Where there are layer_types, they say which layers have it: transformers then reads a mistral
    as a ministral (AutoConfig.from_pretrained, 5.23).
    """
    window = None if config["sliding_window"] is None else _integer(config, "sliding_window")
    types = config.get("layer_types")
    if types is None:
        return window
    layers = _integer(config, "num_hidden_layers")
    if types == ["full_attention"] * layers:
        return None
    if types == ["sliding_attention"] * layers and window is not None:
        return window
    raise UnsupportedError(
        f"expected layer_types of one kind, full_attention or sliding_attention, for {layers} "
        f"layers in {path}, found {types!r}"
    )


def _refuse_unsupported(path: Path, config: dict[str, Any], rope: dict[str, Any]) -> None:
    refuse_unsupported_architecture(path, config, ("mistral",))
    if config["hidden_act"] != "silu":
        raise UnsupportedError(
            f"expected hidden_act silu, found {config['hidden_act']!r} in {path}"
        )
    if not config["is_causal"]:
        raise UnsupportedError(
            f"expected causal attention, found is_causal {config['is_causal']!r} in {path}: every "
            "token of this model sees those after it"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UnsupportedError(
            f"expected plain rotary embedding (rope_type default), found {kind!r} in {path}"
        )
