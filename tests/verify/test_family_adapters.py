"""Adapters of every family: merged, exported and streamed as peft and transformers run them."""

from pathlib import Path

import peft
import pytest
import torch
import transformers

from anna_export.console.output import stage
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.reference.load import open_reference, open_streamed_reference
from anna_export.spec import FAMILIES
from anna_export.verify.texts import ordinary_texts
from anna_export.weights.checkpoint import Checkpoint
from anna_export.weights.merge import write_merged
from tests.support.families import BOTH_WAYS, write_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(base: Path, folder: Path, *, headed: bool) -> peft.PeftModel:
    """Put a random adapter on a model, its biases trained too, save it, and return the model."""
    torch.manual_seed(3)
    kind = transformers.AutoModelForCausalLM if headed else transformers.AutoModel
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, bias="all")
    tuned = peft.get_peft_model(kind.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    tuned.save_pretrained(folder)
    return tuned


@pytest.mark.parametrize("headed", [False, True], ids=["decoder", "language model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_are_those_that_peft_merges(
    family: str, headed: bool, tmp_path: Path
) -> None:
    base = write_model(tmp_path / "base", family, headed=headed)
    tuned = adapted(base, tmp_path / "adapter", headed=headed).merge_and_unload()
    write_merged(base, tmp_path / "adapter", tmp_path / "merged")
    expected = (tuned.model if headed else tuned).state_dict()
    merged, loading = transformers.AutoModel.from_pretrained(
        tmp_path / "merged", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values())
    assert merged.state_dict().keys() == expected.keys()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", ["causal", "both ways"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_is_proved_against_peft_in_memory_and_layer_by_layer(
    family: str, mask: str, tmp_path: Path
) -> None:
    changes = BOTH_WAYS[family] if mask == "both ways" else {}
    base = write_model(tmp_path / "base", family, **changes)
    adapted(base, tmp_path / "adapter", headed=False)
    recipe = Recipe(base, tmp_path / "adapter", tmp_path / "out", max_tokens=64, eos=True)
    exported = export(recipe, stage)
    assert exported.parity is not None and exported.parity.verdict == "pass"
    framing = exported.artifact.manifest.framing
    reference = open_reference(base, tmp_path / "adapter", framing=framing, eos_chosen=True)
    checkpoint = Checkpoint.open(base, tmp_path / "adapter")
    streamed = open_streamed_reference(checkpoint, framing, eos_chosen=True)
    texts = ordinary_texts(6)
    expected = torch.from_numpy(reference.encode(texts))
    torch.testing.assert_close(
        torch.from_numpy(streamed.encode(texts)), expected, rtol=0, atol=2e-6
    )
