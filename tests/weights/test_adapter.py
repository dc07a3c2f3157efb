"""What is read of a LoRA folder, and that all it could mean otherwise is refused by name."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from anna_export.errors import (
    AnnaError,
    DamagedError,
    InputError,
    MissingError,
    ShapeError,
    UnsupportedError,
)
from anna_export.weights.adapter import _UNSUPPORTED, CONFIG_FILE, WEIGHTS_FILE, read_adapter
from tests.support import refusals
from tests.support.types import MakeAdapter
from tests.weights.conftest import ROWS

pytestmark = pytest.mark.filterwarnings("ignore:::peft")

A = "base_model.model.layers.1.self_attn.q_proj.lora_A.weight"
B = "base_model.model.layers.1.self_attn.q_proj.lora_B.weight"

# LoraConfig's fields that change no number of a stored adapter: which modules were trained, how
# they were initialised or are shown, and settings of what is refused by a field of its own.
HARMLESS = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "lora_dropout", "modules_to_save"),
    *("layers_to_transform", "layers_pattern", "megatron_core", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "qalora_group_size", "runtime_config"),
    "ensure_weight_tying",
}
READ = {
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias"),
    *("init_lora_weights", "trainable_token_indices"),
}


@pytest.fixture(scope="module")
def lora(small: Path, make_adapter: MakeAdapter) -> Path:
    return make_adapter(small)


@pytest.fixture
def copy(lora: Path, tmp_path: Path) -> Path:
    """A copy of the adapter, to change."""
    return Path(shutil.copytree(lora, tmp_path / "adapter"))


def configure(folder: Path, **changes: Any) -> Path:
    """Change settings; None removes."""
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> Path:
    """Add tensors, None removes."""
    path = folder / WEIGHTS_FILE
    tensors = load_file(path) | changes
    save_file({key: value for key, value in tensors.items() if value is not None}, path)
    return folder


def refusal(kind: type[AnnaError], folder: Path) -> str:
    return refusals.refusal(kind, lambda: read_adapter(folder))


# -- what is read --


def test_delta_is_scaled_by_alpha_over_rank(lora: Path) -> None:
    delta = read_adapter(lora).deltas["layers.1.self_attn.q_proj.weight"]
    assert delta.scale == 8 / 4 and delta.shape == (96, 40)


def test_rslora_scales_by_the_root_of_the_rank(copy: Path) -> None:
    adapter = read_adapter(configure(copy, use_rslora=True, lora_alpha=3))
    assert {delta.scale for delta in adapter.deltas.values()} == {3 / 2}


def test_embeddings_delta_has_the_embeddings_shape(small: Path, make_adapter: MakeAdapter) -> None:
    adapter = read_adapter(make_adapter(small, target_modules=["embed_tokens"]))
    delta = adapter.deltas["embed_tokens.weight"]
    b, a = delta.factors()
    assert delta.shape == (ROWS, 40) == (b @ a).shape


def test_every_setting_of_peft_is_read_refused_or_known_to_change_nothing() -> None:
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields - HARMLESS - READ - set(_UNSUPPORTED) == set()


# -- other kinds of adapter --

CONFIGS = {
    "LOHA": peft.LoHaConfig(target_modules=["q_proj"]),
    "IA3": peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    "ADALORA": peft.AdaLoraConfig(target_modules=["q_proj"], total_step=9),
    "VERA": peft.VeraConfig(target_modules=["q_proj"]),
    "PROMPT_TUNING": peft.PromptTuningConfig(num_virtual_tokens=3),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_another_kind_than_lora_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    CONFIGS[kind].save_pretrained(tmp_path)
    assert f"(peft_type LORA), found '{kind}'" in refusal(UnsupportedError, tmp_path)


def test_config_that_is_no_adapters_is_refused(copy: Path) -> None:
    assert "(peft_type LORA), found None" in refusal(
        UnsupportedError, configure(copy, peft_type=None)
    )


def test_dora_is_refused_by_name(small: Path, make_adapter: MakeAdapter) -> None:
    assert "found DoRA" in refusal(UnsupportedError, make_adapter(small, use_dora=True))


def test_dora_hidden_from_the_config_is_refused_by_its_tensor(
    small: Path, make_adapter: MakeAdapter
) -> None:
    folder = configure(make_adapter(small, use_dora=True), use_dora=False)
    assert "lora_magnitude_vector" in refusal(UnsupportedError, folder)


def test_lora_bias_hidden_from_the_config_is_refused_by_its_tensor(copy: Path) -> None:
    key = B.replace("weight", "bias")
    edit_tensors(copy, **{key: torch.ones(96)})
    assert f"found {key}" in refusal(UnsupportedError, copy)


@pytest.mark.parametrize("name", [name for name in _UNSUPPORTED if name != "use_dora"])
def test_setting_that_changes_the_product_is_refused_by_name(copy: Path, name: str) -> None:
    message = refusal(UnsupportedError, configure(copy, **{name: {"any": 1}}))
    assert f"found {name} in" in message and "merge it with peft" in message


@pytest.mark.parametrize("bias", ["none", "null", "all", "lora_only"])
def test_setting_of_bias_without_a_bias_is_an_adapter_without(copy: Path, bias: str) -> None:
    plain = read_adapter(copy)
    path = copy / CONFIG_FILE
    config = json.loads(path.read_text()) | {"bias": None if bias == "null" else bias}
    path.write_text(json.dumps(config))
    assert read_adapter(copy) == plain


@pytest.mark.parametrize(
    "init", ["pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga"]
)
def test_initialisation_that_rewrote_the_base_is_refused(copy: Path, init: str) -> None:
    message = refusal(UnsupportedError, configure(copy, init_lora_weights=init))
    assert f"init_lora_weights={init.lower()!r}, which rewrites them" in message


# -- files --


def test_missing_adapter_folder_is_named(tmp_path: Path) -> None:
    assert "found none at" in refusal(MissingError, tmp_path / "gone")


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert name in refusal(MissingError, copy)


def test_pickled_adapter_is_refused(copy: Path) -> None:
    (copy / WEIGHTS_FILE).rename(copy / "adapter_model.bin")
    assert "pickle files can run code" in refusal(UnsupportedError, copy)


def test_adapter_without_tensors_is_refused(copy: Path) -> None:
    save_file({}, copy / WEIGHTS_FILE)
    assert "expected LoRA tensors" in refusal(InputError, copy)


# -- factors --


@pytest.mark.parametrize(("gone", "left"), [(B, "A"), (A, "B")])
def test_factor_without_its_partner_is_refused_by_module(copy: Path, gone: str, left: str) -> None:
    edit_tensors(copy, **{gone: None})
    message = refusal(DamagedError, copy)
    assert f"of layers.1.self_attn.q_proj, found only ['{left}']" in message


@pytest.mark.parametrize("shape", [(3, 40), (4,), (4, 40, 1)], ids=str)
def test_factors_that_do_not_fit_are_refused(copy: Path, shape: tuple[int, ...]) -> None:
    edit_tensors(copy, **{A: torch.ones(shape)})
    assert f"found {shape} and (96, 4)" in refusal(ShapeError, copy)


@pytest.mark.parametrize(
    "changes",
    [{"r": 5}, {"rank_pattern": {"q_proj": 3}}, {"r": 5, "rank_pattern": {"k_proj": 4}}],
    ids=str,
)
def test_rank_that_contradicts_the_config_is_refused(copy: Path, changes: dict[str, Any]) -> None:
    assert "found 4 in" in refusal(ShapeError, configure(copy, **changes))


def test_factors_of_no_rank_are_refused(copy: Path) -> None:
    edit_tensors(copy, **{A: torch.ones(0, 40), B: torch.ones(96, 0)})
    configure(copy, rank_pattern={r"layers\.1\.self_attn\.q_proj": 0})
    assert "expected rank 0" in refusal(ShapeError, copy)


def test_factor_stored_twice_is_refused(copy: Path) -> None:
    edit_tensors(copy, **{A.replace("layers", "model.layers"): torch.ones(4, 40)})
    assert "expected one tensor for layers.1.self_attn.q_proj.lora_A" in refusal(DamagedError, copy)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e5m2], ids=str)
def test_factor_of_a_type_that_is_no_plain_float_is_refused(copy: Path, dtype: torch.dtype) -> None:
    edit_tensors(copy, **{A: torch.ones(4, 40).to(dtype)})
    assert f"expected {A} in fp32, fp16 or bf16" in refusal(UnsupportedError, copy)


# -- settings --


@pytest.mark.parametrize("name", ["r", "lora_alpha"])
@pytest.mark.parametrize("value", [None, "8", True, [8], float("nan"), float("inf")], ids=repr)
def test_rank_or_alpha_that_is_no_number_is_refused(copy: Path, name: str, value: object) -> None:
    assert f"expected a number as {name}" in refusal(InputError, configure(copy, **{name: value}))


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("value", [["q_proj"], "q_proj", {"(": 4}], ids=repr)
def test_patterns_of_the_wrong_form_are_refused(copy: Path, name: str, value: object) -> None:
    assert f"as {name} in" in refusal(InputError, configure(copy, **{name: value}))


@pytest.mark.parametrize(
    "indices",
    [None, [3], [3, -5], [3, "5"], 3, {"embed_tokens": [3]}, {"other": [3, 5]}],
    ids=repr,
)
def test_trained_rows_without_an_index_each_are_refused(
    small: Path, make_adapter: MakeAdapter, indices: object
) -> None:
    folder = make_adapter(small, trainable_token_indices=[3, 5])
    configure(folder, trainable_token_indices=indices)
    assert "one for each trained row" in refusal(UnsupportedError, folder)


def test_embedding_both_adapted_and_trained_by_row_is_refused(
    small: Path, make_adapter: MakeAdapter
) -> None:
    folder = make_adapter(small, target_modules=["embed_tokens"])
    key = "base_model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    edit_tensors(folder, **{key: torch.ones(2, 40)})
    configure(folder, trainable_token_indices=[3, 5])
    assert "found both" in refusal(UnsupportedError, folder)
