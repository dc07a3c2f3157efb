"""Ministral 3: Nemotron-3-Embed. YaRN, and queries that grow with their position."""

from typing import Final

from anna_export.spec.family import Family

MINISTRAL3: Final = Family(
    model_type="ministral3",
    decoder="Ministral3Model",
    absent={"num_key_value_heads": 8, "head_dim": 128},
    scales_queries=True,
)
