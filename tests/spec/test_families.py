"""The numbers of every family, as transformers reads them, and settings that are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from anna_export.errors import UnsupportedError
from anna_export.graph.rotary import frequencies
from anna_export.reference.model import decoder_config, empty_model
from anna_export.spec import FAMILIES, read_spec
from tests.support.families import BOTH_WAYS, CONFIGS, config_of, write_model
from tests.support.refusals import refusal


def written(folder: Path, family: str, **changes: Any) -> Path:
    """Write a config.json alone, as transformers does."""
    config_of(family, **changes).save_pretrained(folder)
    return folder


def stated(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_every_family_has_a_small_model_here() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_transformers_by_name_and_shape(family: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", family)
    model = transformers.AutoModel.from_pretrained(folder)
    spec = read_spec(folder)
    assert spec.weight_shapes() == {n: tuple(w.shape) for n, w in model.state_dict().items()}
    assert type(model).__name__ == spec.of_family.decoder
    assert spec.parameters == model.num_parameters()


@pytest.mark.parametrize("mask", ["causal", "both ways"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_configuration_of_a_spec_is_read_as_that_spec(
    family: str, mask: str, tmp_path: Path
) -> None:
    changes = BOTH_WAYS[family] if mask == "both ways" else {}
    spec = read_spec(written(tmp_path, family, **changes))
    assert spec.causal == (mask == "causal")
    again = tmp_path / "again"
    decoder_config(spec).save_pretrained(again)
    assert read_spec(again) == spec


# What config.json of a published model of each family says; its numbers are public.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen3-Embedding-0.6B": {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151669,
    },
    "gte-Qwen2-1.5B": {
        "model_type": "qwen2",
        "is_causal": False,
        "hidden_act": "silu",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "max_position_embeddings": 131072,
        "max_window_layers": 21,
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "vocab_size": 151646,
    },
    "embeddinggemma-300m": {
        "model_type": "gemma3_text",
        "_sliding_window_pattern": 6,
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 768,
        "intermediate_size": 1152,
        "max_position_embeddings": 2048,
        "num_attention_heads": 3,
        "num_hidden_layers": 24,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "use_bidirectional_attention": True,
        "vocab_size": 262144,
    },
    "Gemma 3 27B's text model": {
        "model_type": "gemma3_text",
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
        "vocab_size": 262208,
    },
    "Llama 3.2 1B": {
        "model_type": "llama",
        "attention_bias": False,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "vocab_size": 128256,
    },
    "Ministral 3 8B": {
        "model_type": "ministral3",
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "is_causal": False,
        "max_position_embeddings": 262144,
        "num_attention_heads": 32,
        "num_hidden_layers": 34,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 16.0,
            "llama_4_scaling_beta": 0.1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16384,
            "rope_theta": 1000000.0,
            "rope_type": "yarn",
            "type": "yarn",
        },
        "sliding_window": None,
        "vocab_size": 131072,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_read_as_transformers_reads_them(
    name: str, tmp_path: Path
) -> None:
    folder = stated(tmp_path, **PUBLISHED[name])
    theirs, spec = transformers.AutoConfig.from_pretrained(folder), read_spec(folder)
    ours = decoder_config(spec)
    for key in ("hidden_size", "num_key_value_heads", "vocab_size", "layer_types"):
        assert getattr(ours, key, None) == getattr(theirs, key, None), key
    rotary = empty_model(spec).rotary_emb
    for key, value in type(rotary)(theirs).named_buffers():
        torch.testing.assert_close(rotary.get_buffer(key), value, rtol=0, atol=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_frequencies_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = stated(tmp_path, **PUBLISHED[name])
    config, spec = transformers.AutoConfig.from_pretrained(folder), read_spec(folder)
    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    layer_type = "full_attention" if "full_attention" in rope else None
    layer = next(i for i in range(spec.layers) if spec.window(i) is None)
    rotary = spec.rotary(layer)
    if full["rope_type"] == "default":
        steps = torch.arange(0, spec.head_dim, 2).float() / spec.head_dim
        expected, factor = 1 / full["rope_theta"] ** steps, 1.0
    else:
        make = ROPE_INIT_FUNCTIONS[full["rope_type"]]
        expected, factor = make(config, "cpu", layer_type=layer_type)
    np.testing.assert_allclose(frequencies(rotary, spec.head_dim), expected, rtol=3e-7)
    assert (rotary.scaling.attention_factor if rotary.scaling else 1.0) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"is_causal": False, "use_bidirectional_attention": False}, "to say the same in"),
        ({"is_causal": True, "use_bidirectional_attention": True}, "to say the same in"),
        ({"use_bidirectional_attention": True}, "expected is_causal false beside"),
    ],
    ids=str,
)
def test_masks_that_contradict_themselves_are_refused(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    folder = stated(tmp_path, **PUBLISHED["Qwen3-Embedding-0.6B"] | changes)
    assert problem in refusal(UnsupportedError, lambda: read_spec(folder))


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("embeddinggemma-300m", {"attn_logit_softcapping": 50.0}, "no attn_logit_softcapping"),
        ("embeddinggemma-300m", {"hidden_activation": "silu"}, "hidden_activation gelu_pytorch"),
        ("embeddinggemma-300m", {"rope_parameters": {"rope_theta": 1.0}}, "by layer type"),
        ("embeddinggemma-300m", {"layer_types": ["full_attention"]}, "for 24 layers"),
        ("Llama 3.2 1B", {"num_attention_heads": 31}, "a multiple of num_attention_heads"),
        ("Llama 3.2 1B", {"rope_scaling": {"rope_type": "longrope"}}, "found 'longrope'"),
        ("Qwen3-Embedding-0.6B", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ],
    ids=str,
)
def test_settings_that_are_not_exported_are_refused_by_name(
    name: str, changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    folder = stated(tmp_path, **PUBLISHED[name] | changes)
    assert problem in refusal(UnsupportedError, lambda: read_spec(folder))
