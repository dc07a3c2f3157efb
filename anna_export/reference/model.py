"""transformers' own model, without weights."""

import copy
from typing import Any

import torch

from anna_export.spec import EmbeddingSpec
from anna_export.spec.family import FULL_ATTENTION, SLIDING_ATTENTION


def empty_model(spec: EmbeddingSpec) -> Any:
    """Return transformers' decoder of these numbers, its weights on the meta device."""
    return empty_decoder(decoder_config(spec)).eval()


def empty_decoder(config: Any) -> Any:
    """Return transformers' decoder of a configuration in fp32, its weights on the meta device.

    Frequencies and scales are computed, not loaded: buffers have their values.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModel

    # weights are made before they are dropped: address space for the largest of them is needed
    small = copy.deepcopy(config)
    small.vocab_size, small.pad_token_id = 1, None
    with init_empty_weights(include_buffers=False):
        decoder = AutoModel.from_config(small, dtype=torch.float32, attn_implementation="sdpa")
    table = torch.empty((config.vocab_size, config.hidden_size), device="meta")
    decoder.embed_tokens.weight = torch.nn.Parameter(table)
    decoder.embed_tokens.num_embeddings = decoder.config.vocab_size = config.vocab_size
    return decoder


def decoder_config(spec: EmbeddingSpec) -> Any:
    """Return transformers' configuration of these numbers."""
    from transformers import AutoConfig

    family = spec.of_family
    rope: dict[str, Any] = _rope_parameters(spec)
    if family.rotary_by_layer_type:
        windowed = {"rope_type": "default", "rope_theta": spec.windowed_rope_theta}
        rope = {FULL_ATTENTION: rope, SLIDING_ATTENTION: windowed}
    window = spec.sliding_window
    settings = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.dim,
        "intermediate_size": spec.ffn_dim,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.norm_eps,
        "max_position_embeddings": spec.max_positions,
        "rope_parameters": rope,
        # masking_utils: a window to both sides includes its last token
        "sliding_window": window if window is None or spec.causal else window - 1,
        family.activation_key: str(family.activation),
        "pad_token_id": None,
    }
    settings |= {key: set(modules) <= set(spec.biases) for key, modules in family.biases.items()}
    if family.query_scalar_key is not None:
        settings[family.query_scalar_key] = spec.query_scalar
    if family.windows_by_layer:
        settings["use_sliding_window"] = window is not None
        settings["layer_types"] = [
            FULL_ATTENTION if spec.window(layer) is None else SLIDING_ATTENTION
            for layer in range(spec.layers)
        ]
    if not spec.causal:
        settings["is_causal"] = False
    return AutoConfig.for_model(spec.family, **settings)


def _rope_parameters(spec: EmbeddingSpec) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": spec.rope_theta}
    if (scaling := spec.rope_scaling) is not None:
        rope |= {"rope_type": str(scaling.kind), "factor": scaling.factor, **scaling.of_kind()}
    if (queries := spec.query_scaling) is not None:
        rope |= {
            "llama_4_scaling_beta": queries.beta,
            "original_max_position_embeddings": queries.positions,
        }
    return rope
