"""The base that is trained on: its own weights, or none."""

from pathlib import Path

import pytest
import torch
from anna_train.model.trained_model import load_model, open_base
from anna_train.recipe import DataRecipe, LoraRecipe, TuneRecipe
from safetensors.torch import load_file, save_file

from anna_export.errors import InputError, UnsupportedError
from tests.support.folders import edit_json
from tests.support.types import MakeModel


@pytest.fixture
def base(make_model: MakeModel) -> Path:
    return make_model()


def load(folder: Path) -> None:
    recipe = TuneRecipe(
        base=str(folder),
        prompts=Path("prompts.json"),
        data=(DataRecipe(path=Path("rows.jsonl"), task="query"),),
        lora=LoraRecipe(rank=4, quantise="none"),
    )
    load_model(open_base(str(folder)), recipe, torch.device("cpu"))


def test_quantised_base_is_refused(base: Path) -> None:
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit_json(base / "config.json", lambda config: config.update(quantization_config=bits))
    with pytest.raises(UnsupportedError, match=f"found quantization_config in {base}"):
        load(base)


def test_base_whose_names_transformers_does_not_know_is_refused(base: Path) -> None:
    path = base / "model.safetensors"
    tensors = {f"_orig_mod.{key}": tensor for key, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"expected the weight embed_tokens\.weight by that name"):
        load(base)
