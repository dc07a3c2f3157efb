"""Gemma 3: embeddinggemma, harrier, KaLM-Gemma3. Four norms a layer, two rotary embeddings."""

from collections.abc import Sequence
from typing import Final

from anna_export.spec.config_file import ConfigFile
from anna_export.spec.families.llama import LLAMA
from anna_export.spec.family import (
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    BlockNorms,
    Family,
    GateActivation,
)


def layer_types(config: ConfigFile, layers: int) -> Sequence[str]:
    """Return which layers have the window: all but every sixth, unless the config says otherwise.

    Source: Gemma3TextConfig of transformers 5.23.
    """
    period = config.integer("sliding_window_pattern")
    return config.layer_types(
        layers,
        [SLIDING_ATTENTION if (i + 1) % period else FULL_ATTENTION for i in range(layers)],
    )


GEMMA3_TEXT: Final = Family(
    model_type="gemma3_text",
    decoder="Gemma3TextModel",
    absent={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 256,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "hidden_activation": GateActivation.GELU_TANH,
    },
    biases={"attention_bias": LLAMA.biases["attention_bias"]},
    norms=BlockNorms(
        after_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
    ),
    norms_heads=True,
    gain_offset=1.0,
    activation=GateActivation.GELU_TANH,
    activation_key="hidden_activation",
    scales_embedding=True,
    query_scalar_key="query_pre_attn_scalar",
    layer_types=layer_types,
    windows_by_layer=True,
    rotary_by_layer_type=True,
    reads_bidirectional_key=True,
    even_dim=True,
    refused=("attn_logit_softcapping",),
)
