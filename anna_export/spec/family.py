"""A family of decoders: what differs from one model_type to another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from anna_export.spec.config_file import ConfigFile

FULL_ATTENTION: Final = "full_attention"
SLIDING_ATTENTION: Final = "sliding_attention"


class GateActivation(StrEnum):
    """What the MLP's gate passes through; transformers' names."""

    SILU = "silu"
    GELU_TANH = "gelu_pytorch_tanh"


@dataclass(frozen=True, slots=True)
class BlockNorms:
    """A layer's norms, by their names there; None where there is none."""

    before_attention: str = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str = "post_attention_layernorm"
    after_mlp: str | None = None

    def names(self) -> tuple[str, ...]:
        """Return those there are, in the order a layer passes them."""
        every = (self.before_attention, self.after_attention, self.before_mlp, self.after_mlp)
        return tuple(name for name in every if name is not None)


def one_kind(config: ConfigFile, layers: int) -> Sequence[str]:
    """Return the layer types of a decoder whose layers all have its window, if it has one."""
    every = [SLIDING_ATTENTION if config.has("sliding_window") else FULL_ATTENTION] * layers
    return config.layer_types(layers, every, mixed=False)


def no_window(_: ConfigFile, layers: int) -> Sequence[str]:
    """Return the layer types of a decoder without windows, whatever its config.json says."""
    return [FULL_ATTENTION] * layers


@dataclass(frozen=True, slots=True)
class Family:
    """What makes a decoder of one model_type another than Mistral's.

    Args:
        model_type: Its name in config.json.
        decoder: transformers' class of it, without a language head.
        absent: What a key means that config.json does not have.
        biases: Linear modules with a bias, by the config's key that says so.
        always_biased: Linear modules that have a bias in every model.
        norms: Where a layer is normalised.
        norms_heads: Whether each query and key head is normalised before rotary embedding.
        gain_offset: What is added to a norm's stored weight.
        activation: What the MLP's gate passes through.
        activation_key: Its key in config.json.
        scales_embedding: Whether token embeddings are multiplied by the root of their length.
        query_scalar_key: The key of the number whose inverse root scores are multiplied by; None
            for head_dim.
        layer_types: Says which layers have the window: a config's, and how many layers.
        windows_by_layer: Whether that may differ from layer to layer.
        rotary_by_layer_type: Whether layers with the window have a rotary embedding of their own.
        scales_queries: Whether queries grow with their position.
        reads_bidirectional_key: Whether transformers reads use_bidirectional_attention.
        even_dim: Whether transformers wants the hidden size to be a multiple of the heads.
        refused: Keys that have to be null.
    """

    model_type: str
    decoder: str
    absent: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    always_biased: tuple[str, ...] = ()
    norms: BlockNorms = BlockNorms()
    norms_heads: bool = False
    gain_offset: float = 0.0
    activation: GateActivation = GateActivation.SILU
    activation_key: str = "hidden_act"
    scales_embedding: bool = False
    query_scalar_key: str | None = None
    layer_types: Callable[[ConfigFile, int], Sequence[str]] = one_kind
    windows_by_layer: bool = False
    rotary_by_layer_type: bool = False
    scales_queries: bool = False
    reads_bidirectional_key: bool = False
    even_dim: bool = False
    refused: tuple[str, ...] = ()
