"""What a model is: its numbers, read from config.json, and what stands behind its decoder."""

from anna_export.spec.config import read_spec
from anna_export.spec.head import (
    LAST_TOKEN,
    Activation,
    Dense,
    Head,
    PoolingMode,
    Similarity,
    dense_words,
    pooling_words,
)
from anna_export.spec.model import (
    EMBEDDING_WEIGHT,
    ENGINE_PRECISIONS,
    LINEAR_INPUTS,
    EmbeddingSpec,
    Precision,
)

__all__ = [
    "EMBEDDING_WEIGHT",
    "ENGINE_PRECISIONS",
    "LAST_TOKEN",
    "LINEAR_INPUTS",
    "Activation",
    "Dense",
    "EmbeddingSpec",
    "Head",
    "PoolingMode",
    "Precision",
    "Similarity",
    "dense_words",
    "pooling_words",
    "read_spec",
]
