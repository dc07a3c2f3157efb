"""What a model is: the numbers of a Mistral-shaped embedding model."""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final

from anna_export.errors import UnsupportedError
from anna_export.spec.head import LAST_TOKEN, Head


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
    """The shape of a decoder that embeds, and what makes its hidden states one vector.

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
    head: Head = LAST_TOKEN

    def __post_init__(self) -> None:
        numbers = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in numbers.items():
            if name != "head" and value is not None and not value > 0:
                raise UnsupportedError(f"expected a positive {name} in config.json, found {value}")
        if self.heads % self.kv_heads:
            raise UnsupportedError(
                f"expected heads to be a multiple of key/value heads, found {self.heads} and "
                f"{self.kv_heads} in config.json"
            )
        if self.head.dense and self.head.dense[0].in_features != self.dim:
            raise UnsupportedError(
                f"expected a first Dense module of {self.dim} inputs, as hidden states have, found "
                f"{self.head.dense[0].in_features}"
            )
        if self.head_dim % 2:
            raise UnsupportedError(
                f"expected an even head_dim (rotary embedding turns pairs), found {self.head_dim}"
            )

    @property
    def embedding_dim(self) -> int:
        """D, the length of a vector: that of a hidden state, or what the last Dense gives."""
        return self.head.dense[-1].out_features if self.head.dense else self.dim

    @property
    def q_dim(self) -> int:
        """Columns of the query projection: heads times head_dim, which need not equal dim."""
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Columns of the key and of the value projection."""
        return self.kv_heads * self.head_dim

    @property
    def takes_prefix(self) -> bool:
        """Whether a prompt's keys and values can be computed once, for all texts behind it."""
        return self.head.takes_prefix

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight's name and its (out, in) shape: the decoder's, then the Dense modules'.

        Those are called head.dense.0.weight, head.dense.0.bias and so on.
        """
        return self.decoder_shapes() | self.head.weight_shapes()

    def decoder_shapes(self) -> dict[str, tuple[int, ...]]:
        """Each of the decoder's weights, named as in a MistralModel's state dict, and its shape."""
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
