"""The reference of folders with wrappers' names, or left-over settings, is that of plain ones."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from anna_export.reference.load import open_reference
from anna_export.reference.plain_folder import plain_adapter, plain_model
from anna_export.weights.adapter import WEIGHTS_FILE
from tests.support.folders import edit_json
from tests.support.types import MakeAdapter, MakeBatch, MakeModel

pytestmark = pytest.mark.filterwarnings("ignore:::peft")

Run = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def base(make_model: MakeModel) -> Path:
    return make_model(headed=True, shard="3MB")


@pytest.fixture(scope="module")
def adapter(base: Path, make_adapter: MakeAdapter) -> Path:
    return make_adapter(base, headed=True, modules_to_save=["norm"])


@pytest.fixture
def base_copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "base"))


@pytest.fixture
def adapter_copy(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


@pytest.fixture(scope="module")
def run(make_batch: MakeBatch) -> Run:
    """Embeds with the reference of base and adapter."""
    return lambda *folders: open_reference(*folders, device="cpu").backend.run(make_batch(9, 5))


def rename(path: Path, change: Callable[[str], str]) -> None:
    tensors = {change(key): tensor for key, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def test_base_of_wrapped_names_is_the_base(base: Path, base_copy: Path, run: Run) -> None:
    def wrap(key: str) -> str:
        return f"module._orig_mod.{key}".replace("layers.1.", "layers.1._fsdp_wrapped_module.")

    files = list(base_copy.glob("*.safetensors"))
    assert len(files) > 1
    for path in files:
        rename(path, wrap)
    edit_json(
        base_copy / "model.safetensors.index.json",
        lambda index: index.update(
            weight_map={wrap(key): name for key, name in index["weight_map"].items()}
        ),
    )
    np.testing.assert_array_equal(run(base_copy), run(base))


def test_base_with_a_left_over_setting_of_quantization_is_the_base(
    base: Path, base_copy: Path, run: Run
) -> None:
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit_json(base_copy / "config.json", lambda config: config.update(quantization_config=bits))
    np.testing.assert_array_equal(run(base_copy), run(base))


@pytest.mark.parametrize(
    "change",
    [
        lambda key: f"module.{key}",
        lambda key: key.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
        lambda key: key.replace(".weight", ".code_search.weight") if "lora_" in key else key,
        lambda key: key.removeprefix("base_model.model."),
    ],
    ids=["DDP", "checkpointing", "the adapter's name", "no prefix"],
)
def test_adapter_of_wrapped_names_is_the_adapter(
    base: Path, adapter: Path, adapter_copy: Path, run: Run, change: Callable[[str], str]
) -> None:
    rename(adapter_copy / WEIGHTS_FILE, change)
    np.testing.assert_array_equal(run(base, adapter_copy), run(base, adapter))


def test_adapter_saved_by_state_dict_is_the_adapter(
    base: Path, adapter: Path, adapter_copy: Path, run: Run
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped: Any = torch.compile(peft.PeftModel.from_pretrained(model, adapter))
    state = {key: tensor.contiguous() for key, tensor in wrapped.state_dict().items()}
    save_file(state, adapter_copy / WEIGHTS_FILE)
    np.testing.assert_array_equal(run(base, adapter_copy), run(base, adapter))


def test_plain_folders_are_given_as_they_are(base: Path, adapter: Path) -> None:
    with plain_model(base) as model, plain_adapter(adapter) as lora:
        assert (model, lora) == (base, adapter)
