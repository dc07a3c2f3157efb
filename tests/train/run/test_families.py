"""Two steps over every family: what was trained is what sentence-transformers and peft read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from anna_train.cli import run
from anna_train.model.trained_model import load_model, open_base
from anna_train.plan.assemble import Assembler
from anna_train.recipe import read_tune_recipe
from anna_train.run.gradient import GradientSettings, embed_groups
from anna_train.run.processes import Processes
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

import anna_export
from anna_export.cli import run as export
from anna_export.spec import FAMILIES
from anna_export.text.prompt_file import read_task_file
from tests.support.families import BOTH_WAYS, write_model
from tests.support.st_folders import dense, open_st, save_st

Tune = Callable[..., tuple[Path, Path]]
TEXTS = ["the fox is wet", "a card has not arrived, and nobody knows where it is", "rain"]
# long enough to be shared
INSTRUCTION = "Given a question of somebody who wants to know, find the text that answers it"
HEADS: dict[str, dict[str, Any]] = {
    "last token": {},
    "mean without prompt": {"pooling": "mean", "include_prompt": False},
    "mean, Dense": {"pooling": "mean", "layers": [dense(48, 24)]},
}
# a causal model's prompts are shared in front of texts; each head and mask is in one case or more
CASES = [
    *((family, False, "last token") for family in FAMILIES),
    *((family, True, "mean, Dense") for family in FAMILIES),
    ("qwen3", False, "mean without prompt"),
    ("gemma3_text", True, "mean without prompt"),
]


@pytest.fixture
def tune(tmp_path: Path) -> Tune:
    """Trains two steps over a family's small model; returns the base and the recipe."""

    def make(family: str, both_ways: bool, head: str) -> tuple[Path, Path]:
        changes = BOTH_WAYS[family] if both_ways else {}
        bare = write_model(tmp_path / "bare", family, **changes)
        base = save_st(bare, tmp_path / "base", **HEADS[head])
        rows = [
            {"query": f"what is {n}", "pos": [f"it is {n}"], "neg": [f"it is {n + 50}"]}
            for n in range(16)
        ]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks = {"query": {"format": "qwen3", "instruction": INSTRUCTION}}
        (tmp_path / "prompts.json").write_text(json.dumps({"default": "query", "tasks": tasks}))
        recipe = {
            "base": str(base),
            "prompts": "prompts.json",
            "data": [{"path": "rows.jsonl", "task": "query"}],
            "steps": 2,
            "batch": {"queries": 6, "negatives": 1, "group": 3},
            "examples": {"least": 1, "most": 1},
            "limits": {"query": 16, "document": 16, "example_query": 8, "example_response": 8},
            "evaluation": {"examples": 1},
            "loss": {"soft_labels": 0},
            "lora": {"rank": 4, "alpha": 8, "dropout": 0},
            "optimizer": {"learning_rate": 0.05},
            "run": {"precision": "fp32", "threads": 1, "mini_batch_tokens": 150},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        arguments = ["--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "adapter")]
        assert run(["tune", *arguments]) == 0
        return base, tmp_path / "recipe.yaml"

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("family", "both_ways", "head"), CASES)
def test_vectors_of_training_are_those_of_the_librarys_encode(
    family: str, both_ways: bool, head: str, tune: Tune, tmp_path: Path
) -> None:
    base, path = tune(family, both_ways, head)
    adapter, recipe = tmp_path / "adapter", read_tune_recipe(path)
    library = open_st(adapter)
    opened = open_base(recipe.base)
    model = load_model(opened, recipe, torch.device("cpu"))
    weights = load_file(adapter / "adapter_model.safetensors")
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)
    set_peft_model_state_dict(model.adapted, weights)
    model.adapted.eval()
    prompts = read_task_file(adapter / "prompts.json").tasks
    assembler = Assembler(opened.tokeniser, recipe.limits, opened.spec)
    artifact = tmp_path / "artifact"
    arguments = ["--model", str(base), "--adapter", str(adapter), "--out", str(artifact)]
    assert export([*arguments, "--max-tokens", "256"]) == 0
    encoder = anna_export.open_encoder(artifact)
    for name in ("query", "query-few-shot"):
        group = assembler.group(TEXTS, prompts[name].prompt(), 64, range(len(TEXTS)))
        # what all texts share is one prefix, unless the model computes prompts with every text
        assert bool(group.prefix) == opened.spec.takes_prefix
        trained = embed_groups(model.inner, [group], GradientSettings(1000), Processes()).numpy()
        vectors = library.encode(TEXTS, prompt_name=name)
        # fp32 in another order
        np.testing.assert_allclose(trained, vectors, atol=5e-6)
        np.testing.assert_allclose(encoder.encode(TEXTS, name), vectors, atol=5e-6)
