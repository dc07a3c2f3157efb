"""Qwen3: Qwen3-Embedding, Octen, F2LLM-v2, jina-v5. Each query and key head is normalised."""

from typing import Final

from anna_export.spec.families.llama import LLAMA
from anna_export.spec.families.qwen2 import QWEN2, layer_types
from anna_export.spec.family import Family

QWEN3: Final = Family(
    model_type="qwen3",
    decoder="Qwen3Model",
    absent={**QWEN2.absent, "head_dim": 128},
    biases={"attention_bias": LLAMA.biases["attention_bias"]},
    norms_heads=True,
    layer_types=layer_types,
    windows_by_layer=True,
)
