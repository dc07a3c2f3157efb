"""Mistral: e5-mistral, SFR, Linq, LGAI-Embedding, bge-en-icl."""

from typing import Final

from anna_export.spec.family import Family

MISTRAL: Final = Family(
    model_type="mistral",
    decoder="MistralModel",
    absent={"num_key_value_heads": 8, "sliding_window": 4096},
)
