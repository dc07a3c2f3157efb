"""What a model is: the numbers of a decoder that embeds."""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final

from anna_export.errors import UnsupportedError
from anna_export.spec.families import FAMILIES
from anna_export.spec.family import Family
from anna_export.spec.head import LAST_TOKEN, Head
from anna_export.spec.rotary import QueryScaling, Rotary, RotaryScaling


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
# Norms of each query's and key's head, of families that have them.
HEAD_NORMS: Final = ("q_norm", "k_norm")
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

    Args:
        vocab_size: Rows of the embedding.
        dim: Length of a hidden state.
        ffn_dim: Of the MLP's inner one.
        layers: How many there are.
        heads: Of queries.
        kv_heads: Of keys and values.
        head_dim: Length of a head's part.
        norm_eps: Of RMSNorm.
        rope_theta: Base of the rotary embedding.
        max_positions: Longest sequence.
        sliding_window: Tokens less than so far away are attended to; None for all.
        head: What stands behind the decoder.
        family: Its model_type.
        causal: Whether a token attends to none behind it.
        full_attention_layers: Layers without the window, where others have it.
        biases: Linear modules of a layer with a bias.
        rope_scaling: How the rotary embedding's frequencies are scaled.
        windowed_rope_theta: Base of the rotary embedding of layers with the window, where it is
            another; it is not scaled.
        query_scaling: How queries grow with their position.
        query_scalar: The number whose inverse root scores are multiplied by; None for head_dim.

    Raises:
        UnsupportedError: If the numbers do not describe a decoder.
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
    family: str = "mistral"
    causal: bool = True
    full_attention_layers: tuple[int, ...] = ()
    biases: tuple[str, ...] = ()
    rope_scaling: RotaryScaling | None = None
    windowed_rope_theta: float | None = None
    query_scaling: QueryScaling | None = None
    query_scalar: int | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UnsupportedError(
                f"expected a family among {', '.join(FAMILIES)}, found {self.family!r}; update "
                "anna-export"
            )
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if isinstance(value, int | float) and name != "causal" and not value > 0:
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
    def of_family(self) -> Family:
        """What makes it another model than one of Mistral's numbers."""
        return FAMILIES[self.family]

    def window(self, layer: int) -> int | None:
        """Tokens less than so far away are attended to in this layer; None for all."""
        return None if layer in self.full_attention_layers else self.sliding_window

    def rotary(self, layer: int) -> Rotary:
        """Return the rotary embedding of a layer."""
        if self.windowed_rope_theta is not None and self.window(layer) is not None:
            return Rotary(self.windowed_rope_theta)
        return Rotary(self.rope_theta, self.rope_scaling)

    @property
    def score_scale(self) -> float:
        """What attention's scores are multiplied by."""
        return float((self.query_scalar or self.head_dim) ** -0.5)

    @property
    def embedding_scale(self) -> float:
        """What token embeddings are multiplied by."""
        return float(self.dim**0.5) if self.of_family.scales_embedding else 1.0

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
        """Whether a prompt's keys and values can be computed once, for all texts behind it.

        Where tokens attend to those behind them, they depend on the text.
        """
        return self.causal and self.head.takes_prefix

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight's name and its (out, in) shape: the decoder's, then the Dense modules'.

        Those are called head.dense.0.weight, head.dense.0.bias and so on.
        """
        return self.decoder_shapes() | self.head.weight_shapes()

    def decoder_shapes(self) -> dict[str, tuple[int, ...]]:
        """Each of the decoder's weights, named as in its state dict in transformers, and its shape.

        A layer's come in the order they are used in.
        """
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING_WEIGHT: (self.vocab_size, self.dim)}
        for layer in range(self.layers):
            shapes |= {
                f"layers.{layer}.{name}": size for name, size in self._layer_shapes().items()
            }
        return shapes | {"norm.weight": (self.dim,)}

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        family, norms = self.of_family, self.of_family.norms
        matrices = {
            "self_attn.q_proj": (self.q_dim, self.dim),
            "self_attn.k_proj": (self.kv_dim, self.dim),
            "self_attn.v_proj": (self.kv_dim, self.dim),
            "self_attn.o_proj": (self.dim, self.q_dim),
            "mlp.gate_proj": (self.ffn_dim, self.dim),
            "mlp.up_proj": (self.ffn_dim, self.dim),
            "mlp.down_proj": (self.dim, self.ffn_dim),
        }
        shapes: dict[str, tuple[int, ...]] = {
            f"{name}.weight": (self.dim,) for name in norms.names()
        }
        for module, size in matrices.items():
            shapes[f"{module}.weight"] = size
            if module in self.biases:
                shapes[f"{module}.bias"] = size[:1]
        if family.norms_heads:
            shapes |= {f"self_attn.{name}.weight": (self.head_dim,) for name in HEAD_NORMS}
        return shapes

    def gain_offset(self, name: str) -> float:
        """Return what is added to a weight before it is used: 1 to some families' norms, else 0."""
        is_norm = name.removesuffix(".weight").endswith("norm")
        return self.of_family.gain_offset if is_norm else 0.0

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
