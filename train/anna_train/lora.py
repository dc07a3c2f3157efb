"""A LoRA adapter on a base model, tuned on prompted queries through sentence-transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import PrinterCallback, TrainerCallback

from anna_export.errors import InputError
from anna_train.corpus import Pair
from anna_train.progress import progress_bar
from anna_train.recipes import LoraRecipe
from anna_train.repeatable import repeatable

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def tune_lora(pairs: Sequence[Pair], base: Path, folder: Path, recipe: LoraRecipe) -> None:
    """Tune an adapter on a sentence-transformers base and write it as a peft folder.

    Queries and documents carry the base's own prompts of those names.

    Raises:
        InputError: If a LoRA pair was not trained.
    """
    with repeatable(recipe.seed), TemporaryDirectory(dir=folder.parent) as scratch:
        model = SentenceTransformer(
            str(base),
            device="cpu",
            model_kwargs={"dtype": torch.float32},
            local_files_only=True,
        )
        # anything here keeps sentence-transformers from computing examples for a card nobody writes
        model.model_card_data.widget = [{"text": ""}]
        model.max_seq_length = recipe.train_tokens
        adapted = get_peft_model(model[0].model, _lora_config(recipe))
        model[0].model = adapted
        _train(model, pairs, Path(scratch), recipe)
    check_trained(adapted)
    config = adapted.peft_config["default"]
    # the folder's name: a path of this machine means nothing where the adapter is used
    config.base_model_name_or_path = base.name
    config.target_modules = list(TARGET_MODULES)  # peft keeps a set, whose order is not fixed
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    # an empty model card, with this machine's paths
    (folder / "README.md").unlink()


def check_trained(adapted: PeftModel) -> None:
    """Hold every LoRA pair to having been trained: lora_B starts at zero.

    Raises:
        InputError: If a lora_B is zero, as when gradient checkpointing cuts the gradient off.
    """
    zero = [
        name
        for name, weight in adapted.named_parameters()
        if "lora_B" in name and not weight.detach().any()
    ]
    if zero:
        raise InputError(
            f"expected every lora_B to be trained, found {len(zero)} that are zero, the first "
            f"{zero[0]}; check that the loss reaches all layers"
        )


class _OnStep(TrainerCallback):
    """Calls a function after every optimizer step."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self._advance = advance

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._advance()


def _lora_config(recipe: LoraRecipe) -> LoraConfig:
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(TARGET_MODULES),
        task_type=TaskType.FEATURE_EXTRACTION,
    )


def _train(
    model: SentenceTransformer, pairs: Sequence[Pair], scratch: Path, recipe: LoraRecipe
) -> None:
    data = Dataset.from_dict(
        {
            "query": [pair.query for pair in pairs],
            "document": [pair.document for pair in pairs],
        }
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(scratch),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_pairs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.steps // 10,
        seed=recipe.seed,
        prompts=dict(model.prompts),
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    loss = MultipleNegativesRankingLoss(model, scale=1 / recipe.temperature)
    with progress_bar("LoRA adapter", recipe.steps) as advance:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            loss=loss,
            callbacks=[_OnStep(advance)],
        )
        trainer.remove_callback(PrinterCallback)  # it prints on stdout
        trainer.train()
