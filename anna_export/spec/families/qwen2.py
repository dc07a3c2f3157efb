"""Qwen2: gte-Qwen2, KaLM mini. Queries, keys and values have a bias."""

from collections.abc import Sequence
from typing import Final

from anna_export.spec.config_file import ConfigFile
from anna_export.spec.family import FULL_ATTENTION, SLIDING_ATTENTION, Family


def layer_types(config: ConfigFile, layers: int) -> Sequence[str]:
    """Return which layers have the window: if it is used, those past the first max_window_layers.

    Source: Qwen2Config of transformers 5.23.
    """
    if not config.flag("use_sliding_window"):
        config = ConfigFile(config.path, {**config.values, "sliding_window": None})
    full = config.integer("max_window_layers") if config.has("sliding_window") else layers
    return config.layer_types(
        layers, [FULL_ATTENTION if i < full else SLIDING_ATTENTION for i in range(layers)]
    )


QWEN2: Final = Family(
    model_type="qwen2",
    decoder="Qwen2Model",
    absent={"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    always_biased=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    layer_types=layer_types,
    windows_by_layer=True,
)
