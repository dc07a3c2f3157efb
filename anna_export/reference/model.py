"""transformers' own model, without weights."""

from typing import Any

import torch

from anna_export.spec import EmbeddingSpec


def empty_model(spec: EmbeddingSpec) -> Any:
    """Return transformers' MistralModel of these numbers, its weights on the meta device."""
    from transformers import MistralConfig, MistralModel
    from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding

    config = MistralConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.dim,
        intermediate_size=spec.ffn_dim,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.norm_eps,
        max_position_embeddings=spec.max_positions,
        sliding_window=spec.sliding_window,
        rope_parameters={"rope_theta": spec.rope_theta, "rope_type": "default"},
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = MistralModel(config).eval()
    # its frequencies are computed, not loaded
    model.rotary_emb = MistralRotaryEmbedding(config)
    return model
