"""What a model is: the numbers of a Mistral-shaped embedding model, from its config.json."""

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from anna_export.errors import InputError, MissingError, UnsupportedError
from anna_export.files.json_file import read_json

# What an absent key means to transformers.
_DEFAULTS: Final = {
    "head_dim": None,
    "hidden_act": "silu",
    "is_causal": True,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}


class Precision(StrEnum):
    """The type that weights are stored in; backends may compute in a wider one."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"


# Those that TensorRT builds engines of.
ENGINE_PRECISIONS: Final = (Precision.BF16, Precision.FP16, Precision.FP8)
EMBEDDING_WEIGHT: Final = "embed_tokens.weight"
# What a layer's linear modules read: those that share an input are quantised together.
LINEAR_INPUTS: Final = {
    "attention_input": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_output": ("self_attn.o_proj",),
    "mlp_input": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp_inner": ("mlp.down_proj",),
}


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """The shape of a decoder that embeds: last-token pooling at EOS, then unit L2 length.

    Raises:
        UnsupportedError: If the numbers do not describe a Mistral-shaped model.
    """

    vocab_size: int
    dim: int
    ffn_dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    max_positions: int
    sliding_window: int | None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise UnsupportedError(f"expected a positive {name} in config.json, found {value}")
        if self.heads % self.kv_heads:
            raise UnsupportedError(
                f"expected heads to be a multiple of key/value heads, found {self.heads} and "
                f"{self.kv_heads} in config.json"
            )
        if self.head_dim % 2:
            raise UnsupportedError(
                f"expected an even head_dim (rotary embedding turns pairs), found {self.head_dim}"
            )

    @property
    def q_dim(self) -> int:
        """Columns of the query projection: heads times head_dim, which need not equal dim."""
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Columns of the key and of the value projection."""
        return self.kv_heads * self.head_dim

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight's name, as in a MistralModel's state dict, and its (out, in) shape."""
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING_WEIGHT: (self.vocab_size, self.dim)}
        for layer in range(self.layers):
            prefix = f"layers.{layer}."
            shapes |= {
                prefix + "input_layernorm.weight": (self.dim,),
                prefix + "self_attn.q_proj.weight": (self.q_dim, self.dim),
                prefix + "self_attn.k_proj.weight": (self.kv_dim, self.dim),
                prefix + "self_attn.v_proj.weight": (self.kv_dim, self.dim),
                prefix + "self_attn.o_proj.weight": (self.dim, self.q_dim),
                prefix + "post_attention_layernorm.weight": (self.dim,),
                prefix + "mlp.gate_proj.weight": (self.ffn_dim, self.dim),
                prefix + "mlp.up_proj.weight": (self.ffn_dim, self.dim),
                prefix + "mlp.down_proj.weight": (self.dim, self.ffn_dim),
            }
        return shapes | {"norm.weight": (self.dim,)}

    def linear_modules(self) -> dict[str, str]:
        """Every linear module's name and that of its input, such as layers.3.mlp_inner."""
        return {
            f"layers.{layer}.{module}": f"layers.{layer}.{name}"
            for layer in range(self.layers)
            for name, modules in LINEAR_INPUTS.items()
            for module in modules
        }

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        total = 0
        for shape in self.weight_shapes().values():
            total += shape[0] * (shape[1] if len(shape) == 2 else 1)
        return total


def read_spec(model: Path) -> EmbeddingSpec:
    """Read the spec of a Hugging Face model folder.

    Raises:
        MissingError: If the folder or its config.json does not exist.
        UnsupportedError: If it holds a model of another shape than Mistral's.
    """
    if not model.is_dir():
        raise MissingError(
            f"expected a Hugging Face model folder, found no folder {model}; "
            "models are read from disk, so download it first"
        )
    path = model / "config.json"
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
            sliding_window=(
                None if config["sliding_window"] is None else _integer(config, "sliding_window")
            ),
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
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InputError(f"expected an object as rope_parameters in {path}, found {rope!r}")
    return rope


def _refuse_unsupported(path: Path, config: dict[str, Any], rope: dict[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type != "mistral":
        raise UnsupportedError(
            f"expected a Mistral-shaped model (model_type mistral), found {model_type!r} in {path}"
        )
    if config["hidden_act"] != "silu":
        raise UnsupportedError(
            f"expected hidden_act silu, found {config['hidden_act']!r} in {path}"
        )
    if config.get("auto_map"):
        raise UnsupportedError(
            f"expected a model of transformers' own Mistral code, found code of its own (auto_map) "
            f"in {path}; if plain Mistral computes the same, remove that key"
        )
    if not config["is_causal"]:
        raise UnsupportedError(
            f"expected causal attention, found is_causal {config['is_causal']!r} in {path}: every "
            "token of this model sees those after it"
        )
    if quantized := config.get("quantization_config"):
        kind = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise UnsupportedError(
            f"expected weights in fp32, fp16 or bf16, found a quantized base ({kind}) by {path}; "
            "use the original"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UnsupportedError(
            f"expected plain rotary embedding (rope_type default), found {kind!r} in {path}"
        )
