"""Bases, and adapters over them, that cannot be merged: each refused by name in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anna_export.errors import (
    AnnaError,
    DamagedError,
    MissingError,
    ShapeError,
    UnsupportedError,
)
from anna_export.weights.adapter import CONFIG_FILE, WEIGHTS_FILE
from anna_export.weights.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from tests.support import refusals
from tests.support.folders import edit_json, edit_tensors
from tests.support.types import MakeAdapter, MakeModel
from tests.weights.conftest import ROWS

Q = "layers.1.self_attn.q_proj.weight"
EMBEDDING = "embed_tokens.weight"


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """A copy of the base, to damage."""
    return Path(shutil.copytree(small, tmp_path / "base"))


def refusal(kind: type[AnnaError], base: Path, adapter: Path | None = None) -> str:

    def read_all() -> None:
        checkpoint = Checkpoint.open(base, adapter)
        for name in checkpoint.spec.weight_shapes():
            checkpoint.read(name, torch.float16)

    return refusals.refusal(kind, read_all)


def test_missing_weight_is_refused_by_name(copy: Path) -> None:
    edit_tensors(copy / SINGLE_FILE, lambda name, tensor: None if name == Q else tensor)
    assert f"expected the weight {Q}" in refusal(MissingError, copy)


def test_extra_weight_is_refused_by_name(copy: Path) -> None:
    path = copy / SINGLE_FILE
    save_file(load_file(path) | {"layers.0.self_attn.q_proj.bias": torch.ones(96)}, path)
    assert "found layers.0.self_attn.q_proj.bias" in refusal(UnsupportedError, copy)


@pytest.mark.parametrize("name", ["bias", "base_layer.bias"])
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_trained_bias_that_the_base_has_none_of_is_refused(
    small: Path, make_adapter: MakeAdapter, bias: str, name: str
) -> None:
    adapter = make_adapter(small)
    edit_json(adapter / CONFIG_FILE, lambda config: config.update(bias=bias))
    path = adapter / WEIGHTS_FILE
    key = f"base_model.model.layers.1.self_attn.q_proj.{name}"
    save_file(load_file(path) | {key: torch.ones(96)}, path)
    message = refusal(UnsupportedError, small, adapter)
    assert "expected no bias of layers.1.self_attn.q_proj, which the base has none of" in message
    assert f"found {key} in" in message


def test_weight_stored_twice_is_refused(copy: Path) -> None:
    path = copy / SINGLE_FILE
    save_file(load_file(path) | {"model.norm.weight": torch.ones(40)}, path)
    assert "expected one tensor for norm.weight" in refusal(DamagedError, copy)


def test_weight_of_another_shape_than_the_configs_is_refused(copy: Path) -> None:
    edit_tensors(copy / SINGLE_FILE, lambda name, t: t.T.contiguous() if name == Q else t)
    assert f"expected {Q} of shape (96, 40)" in refusal(ShapeError, copy)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float64], ids=str)
def test_weight_of_a_type_that_is_no_plain_float_is_refused_at_once(
    copy: Path, dtype: torch.dtype
) -> None:
    edit_tensors(copy / SINGLE_FILE, lambda name, t: t.to(dtype) if name == Q else t)
    with pytest.raises(UnsupportedError, match=f"expected {Q} in fp32, fp16 or bf16"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("left_over", [None, {"quant_method": "bitsandbytes"}, "fp8"], ids=str)
def test_setting_of_quantization_beside_plain_weights_is_left_over(
    copy: Path, left_over: object
) -> None:
    edit_json(copy / "config.json", lambda config: config.update(quantization_config=left_over))
    Checkpoint.open(copy)


@pytest.mark.parametrize("name", [Q, Q.replace("weight", "qweight")])
def test_quantized_base_is_refused_by_its_weights(copy: Path, name: str) -> None:
    edit_json(copy / "config.json", lambda c: c.update(quantization_config={"bits": 4}))
    path = copy / SINGLE_FILE
    save_file(load_file(path) | {name: torch.ones(1920, 1, dtype=torch.uint8)}, path)
    assert f"expected {name} in fp32, fp16 or bf16, found U8" in refusal(UnsupportedError, copy)


def test_missing_shard_is_refused_by_name(make_model: MakeModel) -> None:
    sharded = make_model(vocab_size=ROWS, shard="30KB")
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"found no {shard.name}" in refusal(MissingError, sharded)


@pytest.mark.parametrize(
    "weight_map",
    [
        {Q: "../base/model.safetensors"},
        {Q: "/etc/passwd"},
        {Q: ".."},
        {Q: ""},
        {Q: "sub/model.safetensors"},
        {Q: 3},
        ["model.safetensors"],
        None,
    ],
    ids=str,
)
def test_index_that_does_not_name_files_of_its_folder_is_refused(
    copy: Path, weight_map: object
) -> None:
    (copy / SINGLE_FILE).unlink()
    (copy / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    assert "expected file names as weight_map" in refusal(DamagedError, copy)


def test_pickled_base_is_refused(copy: Path) -> None:
    (copy / SINGLE_FILE).rename(copy / "pytorch_model.bin")
    assert "pickle files can run code" in refusal(UnsupportedError, copy)


def test_base_without_weights_is_refused(copy: Path) -> None:
    (copy / SINGLE_FILE).unlink()
    assert "expected model.safetensors" in refusal(MissingError, copy)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [Q, "norm.weight", EMBEDDING])
def test_base_weight_that_is_not_finite_is_refused_by_name(
    copy: Path, name: str, number: float
) -> None:
    def spoil(key: str, tensor: torch.Tensor) -> torch.Tensor:
        if key == name:
            tensor.view(-1)[tensor.numel() // 2] = number
        return tensor

    edit_tensors(copy / SINGLE_FILE, spoil)
    assert f"expected finite numbers in {name}" in refusal(DamagedError, copy)


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_adapter_that_is_not_finite_is_refused_by_the_weights_name(
    small: Path, make_adapter: MakeAdapter, factor: str
) -> None:
    def spoil(key: str, tensor: torch.Tensor) -> torch.Tensor:
        if f"layers.1.self_attn.q_proj.{factor}" in key:
            tensor[1, 1] = float("nan")
        return tensor

    adapter = make_adapter(small)
    edit_tensors(adapter / WEIGHTS_FILE, spoil)
    assert f"expected finite numbers in {Q}, found nan" in refusal(DamagedError, small, adapter)


def test_weight_too_large_for_fp16_is_refused_by_name(copy: Path) -> None:
    edit_tensors(copy / SINGLE_FILE, lambda name, t: t + 70000 if name == Q else t)
    assert "fp16 ends at 65504" in refusal(DamagedError, copy)
    Checkpoint.open(copy).read(Q, torch.bfloat16)


@pytest.mark.parametrize("changes", [{"hidden_size": 44}, {"num_hidden_layers": 4}], ids=str)
def test_adapter_for_another_base_is_refused(
    small: Path, make_model: MakeModel, make_adapter: MakeAdapter, changes: dict[str, int]
) -> None:
    adapter = make_adapter(make_model(vocab_size=ROWS, **changes))
    with pytest.raises((ShapeError, UnsupportedError), match="this adapter is for another base"):
        Checkpoint.open(small, adapter)


@pytest.mark.parametrize(
    ("named", "ending"),
    [("org/other-base", "model, made for org/other-base"), (None, "another base model")],
    ids=["named", "not named"],
)
def test_adapter_for_another_base_names_the_one_it_was_made_for(
    small: Path, make_model: MakeModel, make_adapter: MakeAdapter, named: str | None, ending: str
) -> None:
    adapter = make_adapter(make_model(vocab_size=ROWS, hidden_size=44))
    config = json.loads((adapter / CONFIG_FILE).read_text())
    (adapter / CONFIG_FILE).write_text(json.dumps(config | {"base_model_name_or_path": named}))
    assert refusal(ShapeError, small, adapter).endswith(ending)


@pytest.mark.parametrize("shape", [(ROWS + 2, 44), (ROWS,), ()], ids=str)
def test_embedding_of_another_width_is_refused(
    small: Path, make_adapter: MakeAdapter, shape: tuple[int, ...]
) -> None:
    adapter = make_adapter(small, modules_to_save=["embed_tokens"])
    edit_tensors(
        adapter / WEIGHTS_FILE, lambda key, t: torch.ones(shape) if "embed_tokens" in key else t
    )
    assert "this adapter is for another base" in refusal(ShapeError, small, adapter)


def test_trained_row_beyond_the_vocabulary_is_refused(
    small: Path, make_model: MakeModel, make_adapter: MakeAdapter
) -> None:
    larger = make_model(vocab_size=ROWS + 2)
    adapter = make_adapter(larger, trainable_token_indices=[ROWS])
    assert f"below {ROWS}, found" in refusal(ShapeError, small, adapter)
