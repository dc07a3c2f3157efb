"""What a model is: its numbers, read from config.json, and what stands behind its decoder."""

from anna_export.spec.config import read_spec
from anna_export.spec.families import FAMILIES, Family
from anna_export.spec.family import GateActivation
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
    HEAD_NORMS,
    LINEAR_INPUTS,
    EmbeddingSpec,
    Precision,
)
from anna_export.spec.rotary import QueryScaling, Rotary, RotaryKind, RotaryScaling

__all__ = [
    "EMBEDDING_WEIGHT",
    "ENGINE_PRECISIONS",
    "FAMILIES",
    "HEAD_NORMS",
    "LAST_TOKEN",
    "LINEAR_INPUTS",
    "Activation",
    "Dense",
    "EmbeddingSpec",
    "Family",
    "GateActivation",
    "Head",
    "PoolingMode",
    "Precision",
    "QueryScaling",
    "Rotary",
    "RotaryKind",
    "RotaryScaling",
    "Similarity",
    "dense_words",
    "pooling_words",
    "read_spec",
]
