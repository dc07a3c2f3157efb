"""Architectures that are not supported: each is refused by name, with what it is and what is near.

An architecture that no table names is known by what its config.json says: experts, images, a
decoder behind an encoder, layers of another kind than softmax attention.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from anna_export.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an architecture is, and the family whose models do most nearly the same."""

    nature: str
    nearest: str | None = None


_ENCODER: Final = "an encoder, not a decoder"
_EXPERTS: Final = "a mixture of experts"
_HYBRID: Final = "a hybrid of attention and other layers"
_MODALITIES: Final = "a model of more than text"
_SEQUENCES: Final = "an encoder and a decoder"
_CODE: Final = "a model with code of its own (auto_map)"
_OTHER: Final = "a decoder that computes otherwise"
# A model of each family, as its authors call it.
_MODELS: Final = {
    "gemma3_text": "embeddinggemma-300m",
    "llama": "llama-embed-nemotron-8b",
    "ministral3": "Nemotron-3-Embed-1B",
    "mistral": "e5-mistral-7b-instruct",
    "qwen2": "gte-Qwen2-1.5B-instruct",
    "qwen3": "Qwen3-Embedding-0.6B",
}
_ENCODERS: Final = (
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie"),
    *("eurobert", "gte", "jina_embeddings_v3", "longformer", "modernbert", "mpnet", "nomic_bert"),
    *("roberta", "xlm-roberta", "xlm-roberta-xl"),
    "new",  # gte-*-v1.5 and what was made of them, with code of their own
)
_NAMED: Final = {
    **dict.fromkeys(_ENCODERS, Architecture(_ENCODER, "gemma3_text")),
    "embedding_gemma2": Architecture(_MODALITIES, "gemma3_text"),
    "embedding_gemma2_text": Architecture(
        "a decoder with a residual signal in every layer and wider heads in some", "gemma3_text"
    ),
    **dict.fromkeys(("gemma", "gemma2", "gemma4_text"), Architecture(_OTHER, "gemma3_text")),
    "gemma3n_text": Architecture(_OTHER, "gemma3_text"),
    **dict.fromkeys(("lfm2", "lfm3"), Architecture(_HYBRID, "qwen3")),
    **dict.fromkeys(("qwen3_5", "qwen3_5_text"), Architecture(_HYBRID, "qwen3")),
    **dict.fromkeys(("qwen3_moe", "qwen3_next", "qwen3_5_moe"), Architecture(_EXPERTS, "qwen3")),
    "qwen2_moe": Architecture(_EXPERTS, "qwen2"),
    "mixtral": Architecture(_EXPERTS, "mistral"),
    "gpt_oss": Architecture(_EXPERTS, "llama"),
    "mistral4": Architecture(_EXPERTS, "ministral3"),
    "llama4_text": Architecture(_EXPERTS, "llama"),
    "ministral": Architecture(_OTHER, "ministral3"),
    **dict.fromkeys(("phi3", "olmo2", "smollm3", "granite"), Architecture(_OTHER, "llama")),
    **dict.fromkeys(("t5", "mt5", "umt5", "t5gemma"), Architecture(_SEQUENCES, "gemma3_text")),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), Architecture(_MODALITIES, "qwen2")),
    "qwen3_vl": Architecture(_MODALITIES, "qwen3"),
    "mistral3": Architecture(_MODALITIES, "ministral3"),
    "mllama": Architecture(_MODALITIES, "llama"),
    "gemma3": Architecture(_MODALITIES, "gemma3_text"),
    # bidirectional models with code of their own
    "bidirectional_pplx_qwen3": Architecture(_CODE, "qwen3"),
    "llama_bidirec": Architecture(_CODE, "llama"),
}
_ATTENTION: Final = {"full_attention", "sliding_attention"}


def refuse_unsupported_architecture(
    path: Path, config: dict[str, Any], supported: Collection[str]
) -> None:
    """Refuse a model that is none of a supported family, or brings code of its own.

    Args:
        path: The config.json, to name.
        config: What it says.
        supported: Each family's model_type.

    Raises:
        UnsupportedError: Naming what it is, and what may be exported in its place.
    """
    model_type, supported = config.get("model_type"), tuple(supported)
    architecture = _NAMED.get(str(model_type)) or _by_signs(config)
    if model_type in supported:
        if config.get("auto_map"):
            raise UnsupportedError(
                f"expected a model that transformers' own code computes, found code of its own "
                f"(auto_map) in {path}; if plain {model_type} computes the same, remove that key"
            )
        return
    families = ", ".join(sorted(supported))
    nature = f", {architecture.nature}," if architecture.nature else ""
    raise UnsupportedError(
        f"expected a decoder of a supported family (model_type {families}), found "
        f"{model_type!r}{nature} in {path}; {_remedy(config, architecture.nearest, supported)}"
    )


def _by_signs(config: dict[str, Any]) -> Architecture:
    if config.get("auto_map"):
        return Architecture(_CODE)
    if config.get("is_encoder_decoder"):
        return Architecture(_SEQUENCES)
    if any(name in config for name in ("text_config", "vision_config", "audio_config")):
        return Architecture(_MODALITIES)
    if any("experts" in name and value for name, value in config.items()):
        return Architecture(_EXPERTS)
    types = config.get("layer_types")
    if isinstance(types, list) and not _ATTENTION.issuperset(map(str, types)):
        return Architecture(_HYBRID)
    return Architecture("")


def _remedy(config: dict[str, Any], nearest: str | None, supported: Collection[str]) -> str:
    text = config.get("text_config")
    inner = text.get("model_type") if isinstance(text, dict) else None
    if inner in supported:
        return f"its text model is {inner}: save that alone (model.language_model.save_pretrained)"
    if nearest is None or nearest not in supported:
        return "export a model of one of these"
    if _NAMED[str(config.get("model_type"))].nature == _CODE:
        return (
            f"if that code only makes {nearest} bidirectional, set model_type {nearest} and "
            "is_causal false, and remove auto_map"
        )
    return f"the nearest is {nearest}, such as {_MODELS[nearest]}"
