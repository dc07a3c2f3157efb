"""Takes one training step of a random model and prints what it held, and what was forecast."""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from anna_train.model.loss import Losses
from anna_train.model.trained_model import load_model
from anna_train.recipe import read_tune_recipe
from anna_train.run.gradient import GradientSettings, compute_gradient
from anna_train.run.prepare import prepare
from anna_train.run.processes import Processes
from anna_train.run.step import take_step
from transformers import MistralConfig, MistralModel

from anna_export.console.output import stage
from demo.base_model import save_base
from demo.tokenizer import PAD, build_tokenizer, load_sentencepiece
from tests.train import batches

DIM, FFN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 512, 1792, 8, 8, 2, 64


def write_base(folder: Path) -> None:
    """Write a base of 45 M random parameters, with Mistral's tokenizer."""
    tokenizer = build_tokenizer(load_sentencepiece(), 512)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=DIM,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        sliding_window=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        use_cache=False,
    )
    save_base(MistralModel(config), tokenizer, folder)


def resident(name: str) -> int:
    """Return the process's VmRSS, or its most since the last reset, VmHWM, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _warm_up(bf16: bool) -> None:
    """Let libraries take what they take at their first use, by a step of a tiny model."""
    model = batches.model(dtype=torch.bfloat16 if bf16 else torch.float32)
    optimizer = torch.optim.AdamW(model.weights().values())
    compute_gradient(
        model.inner,
        batches.groups(),
        lambda vectors: Losses(vectors.sum(), 0.0, 0.0, 0.0),
        GradientSettings(40, recompute=True, bf16=bf16),
        Processes(),
    )
    optimizer.step()


def main() -> None:
    torch.set_num_threads(1)
    recipe = read_tune_recipe(Path(sys.argv[1]))
    processes = Processes()
    prepared = prepare(recipe, stage, processes.device)
    _warm_up(recipe.run.precision == "bf16")
    before = resident("VmRSS")
    model = load_model(prepared.base, recipe, processes.device)
    optimizer = torch.optim.AdamW(model.weights().values())
    settings = GradientSettings(
        prepared.forecast.mini_batch_tokens, recipe.run.recompute, recipe.run.precision == "bf16"
    )
    Path("/proc/self/clear_refs").write_text("5")
    take_step(recipe, prepared, model, optimizer, 0, settings, processes)
    forecast = prepared.forecast
    json.dump(
        {
            "peak": resident("VmHWM") - before,
            "forecast": forecast.total - forecast.libraries,
            "mini_batch_tokens": forecast.mini_batch_tokens,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
