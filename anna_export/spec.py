"""What a model is: the numbers of a Mistral-shaped embedding model, from its config.json."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from anna_export.errors import DamagedError, InputError, MissingError, UnsupportedError


class Precision(StrEnum):
    """The type that weights are stored in; backends may compute in a wider one."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def item_bytes(self) -> int:
        """Bytes of one stored number."""
        return 4 if self is Precision.FP32 else 2


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
        shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (self.vocab_size, self.dim)}
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

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        total = 0
        for shape in self.weight_shapes().values():
            total += shape[0] * (shape[1] if len(shape) == 2 else 1)
        return total


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        MissingError: If there is no such file.
        DamagedError: If it is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"expected the file {path}, found none") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedError(f"expected JSON in {path}, found {error}") from None
    if not isinstance(value, dict):
        raise DamagedError(f"expected a JSON object in {path}, found a {type(value).__name__}")
    return value


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
    config = read_json(model / "config.json")
    _refuse_unsupported(model, config)
    try:
        return EmbeddingSpec(
            vocab_size=int(config["vocab_size"]),
            dim=int(config["hidden_size"]),
            ffn_dim=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            kv_heads=int(config.get("num_key_value_heads") or config["num_attention_heads"]),
            head_dim=int(
                config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
            ),
            norm_eps=float(config["rms_norm_eps"]),
            rope_theta=_rope_theta(model, config),
            max_positions=int(config["max_position_embeddings"]),
            # an absent key means transformers' default, null means none
            sliding_window=_optional_int(config.get("sliding_window", 4096)),
        )
    except KeyError as error:
        raise InputError(
            f"expected the key {error} in {model / 'config.json'}, found none"
        ) from None
    except (TypeError, ValueError) as error:
        if isinstance(error, UnsupportedError):
            raise
        raise InputError(f"expected numbers in {model / 'config.json'}, found: {error}") from None


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)


def _refuse_unsupported(model: Path, config: dict[str, Any]) -> None:
    found = config.get("model_type")
    if found != "mistral":
        raise UnsupportedError(
            f"expected a Mistral-shaped model (model_type mistral), found {found!r} in "
            f"{model / 'config.json'}"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedError(f"expected hidden_act silu, found {config['hidden_act']!r}")
    if "quantization_config" in config:
        raise UnsupportedError(
            "expected weights in fp32, fp16 or bf16, found a quantized base "
            f"({config['quantization_config'].get('quant_method', 'unknown')}); use the original"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UnsupportedError(
            f"expected plain rotary embedding (rope_type default), found {kind!r}"
        )


def _rope_theta(model: Path, config: dict[str, Any]) -> float:
    # transformers 5 writes rope_parameters; everything before it wrote rope_theta beside the rest
    theta = (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta"))
    if theta is None:
        raise InputError(f"expected rope_theta in {model / 'config.json'}, found none")
    return float(theta)
