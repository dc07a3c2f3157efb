"""Llama: llama-embed-nemotron, ReasonIR. No window; biases where its config.json has them."""

from typing import Final

from anna_export.spec.family import Family, no_window

LLAMA: Final = Family(
    model_type="llama",
    decoder="LlamaModel",
    biases={
        "attention_bias": (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
        ),
        "mlp_bias": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    },
    layer_types=no_window,
    even_dim=True,
)
