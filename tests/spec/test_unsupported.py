"""Architectures that are refused: what each is called is held against transformers' own lists."""

from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from anna_export.errors import UnsupportedError
from anna_export.spec import unsupported
from anna_export.spec.unsupported import refuse_unsupported_architecture
from tests.support.refusals import refusal

FAMILIES = ("gemma3_text", "llama", "ministral3", "mistral", "qwen2", "qwen3")
CONFIG = Path("model/config.json")
# model_types that transformers has no code for
REMOTE = {"new", "bidirectional_pplx_qwen3", "llama_bidirec"}
NAMED = sorted(unsupported._NAMED.keys() - REMOTE)


def refused(*families: str, **config: Any) -> str:
    return refusal(
        UnsupportedError,
        lambda: refuse_unsupported_architecture(CONFIG, config, families or FAMILIES),
    )


@pytest.mark.parametrize("model_type", NAMED)
def test_nature_is_what_transformers_knows_of_it(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type]()
    settings = config.to_dict()
    settings |= settings.get("text_config", {})
    nature = unsupported._NAMED[model_type].nature
    signs = {
        unsupported._ENCODER: model_type in {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, "gte"},
        unsupported._SEQUENCES: model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        unsupported._EXPERTS: any("experts" in key and value for key, value in settings.items())
        or any("experts" in key for key in config.attribute_map),
        unsupported._MODALITIES: bool(config.sub_configs),
        unsupported._HYBRID: any(
            name in str(settings) for name in ("conv_", "'conv'", "linear_attention")
        ),
    }
    assert signs.get(nature, not any(signs.values())), nature


def test_every_nearest_is_a_family_with_a_model() -> None:
    nearest = {architecture.nearest for architecture in unsupported._NAMED.values()}
    assert nearest == set(unsupported._MODELS) == set(FAMILIES)


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("bert", "found 'bert', an encoder, not a decoder, in model/config.json; the nearest is "),
        ("modernbert", "an encoder, not a decoder, in"),
        ("embedding_gemma2", "the nearest is gemma3_text, such as embeddinggemma-300m"),
        ("lfm2", "a hybrid of attention and other layers, in"),
        ("qwen3_5", "the nearest is qwen3, such as Qwen3-Embedding-0.6B"),
        ("qwen3_moe", "a mixture of experts, in model/config.json; the nearest is qwen3"),
        ("mixtral", "a mixture of experts, in model/config.json; the nearest is mistral"),
    ],
)
def test_common_ones_are_refused_by_name_with_the_nearest(model_type: str, words: str) -> None:
    message = refused(model_type=model_type)
    assert words in message
    assert "(model_type gemma3_text, llama, ministral3, mistral, qwen2, qwen3), found" in message


def test_nearest_that_is_not_supported_is_not_named() -> None:
    assert refused("mistral", model_type="bert").endswith("export a model of one of these")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_local_experts": 8}, "found 'own', a mixture of experts, in"),
        ({"is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"vision_config": {}}, "a model of more than text"),
        ({"layer_types": ["mamba", "full_attention"]}, "a hybrid of attention and other layers"),
        ({"auto_map": {"AutoModel": "own.Model"}}, "a model with code of its own (auto_map)"),
        ({}, "found 'own' in model/config.json; export a model of one of these"),
    ],
    ids=str,
)
def test_unknown_ones_are_known_by_what_their_config_says(
    config: dict[str, Any], words: str
) -> None:
    assert words in refused(model_type="own", **config)


def test_code_of_its_own_is_refused_in_a_supported_family_too() -> None:
    message = refused(model_type="qwen3", auto_map={"AutoModel": "own.Model"})
    assert "if plain qwen3 computes the same, remove that key" in message


def test_bidirectional_model_with_code_of_its_own_may_be_spelt_as_its_family() -> None:
    message = refused(model_type="llama_bidirec", auto_map={"AutoModel": "own.Model"})
    assert "set model_type llama and is_causal false, and remove auto_map" in message


@pytest.mark.parametrize(
    ("model_type", "family"), [("gemma3", "gemma3_text"), ("mistral3", "ministral3")]
)
def test_text_model_of_more_than_text_is_named(model_type: str, family: str) -> None:
    from transformers import Ministral3Config

    # mistral3's default text model is a plain mistral
    text = {"text_config": Ministral3Config()} if model_type == "mistral3" else {}
    config = CONFIG_MAPPING[model_type](**text).to_dict()
    assert f"its text model is {family}: save that alone" in refused(**config)


@pytest.mark.parametrize("model_type", [None, ["qwen3"], {}, 3], ids=repr)
def test_model_type_that_is_no_name_is_none_of_them(model_type: object) -> None:
    named = dict.fromkeys(FAMILIES)
    message = refusal(
        UnsupportedError,
        lambda: refuse_unsupported_architecture(CONFIG, {"model_type": model_type}, named),
    )
    assert f"found {model_type!r} in model/config.json" in message


@pytest.mark.parametrize("model_type", FAMILIES)
def test_supported_family_passes(model_type: str) -> None:
    refuse_unsupported_architecture(CONFIG, {"model_type": model_type}, FAMILIES)
