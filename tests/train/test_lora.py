"""The adapter's folder: an ordinary peft adapter, every part of it trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from anna_train.corpus import Corpus
from anna_train.lora import TARGET_MODULES, check_trained, tune_lora
from anna_train.recipes import LoraRecipe
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from anna_export.errors import InputError


def test_peft_loads_the_adapter_and_it_moves_vectors(tiny_base: Path, tiny_adapter: Path) -> None:
    model = SentenceTransformer(str(tiny_base), device="cpu", model_kwargs={"dtype": torch.float32})
    before = model.encode("What a text means.", prompt_name="query")
    model[0].model = PeftModel.from_pretrained(model[0].model, tiny_adapter).merge_and_unload()
    assert not np.allclose(model.encode("What a text means.", prompt_name="query"), before)


def test_every_linear_layer_has_a_trained_pair(tiny_adapter: Path) -> None:
    weights = load_file(tiny_adapter / "adapter_model.safetensors")
    trained = [name for name, weight in weights.items() if "lora_B" in name and weight.any()]
    assert len(trained) == 3 * len(TARGET_MODULES)
    assert len(weights) == 2 * len(trained)


def test_config_names_the_base_folder_and_the_layers(tiny_adapter: Path) -> None:
    config = json.loads((tiny_adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert config["target_modules"] == list(TARGET_MODULES)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.05)


def test_no_file_names_a_path_of_this_machine(tiny_base: Path, tiny_adapter: Path) -> None:
    outside = str(tiny_base.parent.parent).encode()
    files = [*tiny_adapter.rglob("*"), *tiny_base.rglob("*")]
    assert [path.name for path in files if path.is_file() and outside in path.read_bytes()] == []


def test_an_adapter_that_learnt_nothing_is_not_written(
    tiny_corpus: Corpus, tiny_base: Path, tmp_path: Path
) -> None:
    recipe = LoraRecipe(steps=1, batch_pairs=4, train_tokens=24, learning_rate=0.0)
    with pytest.raises(InputError, match="expected every lora_B to be trained, found 21"):
        tune_lora(tiny_corpus.train, tiny_base, tmp_path / "adapter", recipe)
    assert list(tmp_path.iterdir()) == []


def test_a_zero_lora_b_is_refused(tiny_base: Path) -> None:
    model = get_peft_model(
        AutoModel.from_pretrained(tiny_base), LoraConfig(r=2, target_modules=list(TARGET_MODULES))
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(weight)
    check_trained(model)
    torch.nn.init.zeros_(
        model.get_parameter("base_model.model.layers.1.mlp.up_proj.lora_B.default.weight")
    )
    with pytest.raises(InputError, match=r"1 that are zero, the first .*layers\.1\.mlp\.up_proj"):
        check_trained(model)
