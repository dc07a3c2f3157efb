"""The finished adapter: a folder that anna-export, peft and sentence-transformers read."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from peft import PeftModel

from anna_export.files.atomic import write_text
from anna_export.files.json_file import read_json
from anna_export.text.framing import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    TokenFraming,
    load_tokenizer,
)
from anna_export.text.limit import LIMIT_FILE
from anna_export.text.prompt_file import ADAPTERS_FILE, TaskFile
from anna_export.text.prompt_formats import Example
from anna_export.text.st_files import write_prompts
from anna_export.text.tokenizer_files import Ends, framed_json, read_ends, uncut_json
from anna_export.weights.merge import copy_modules
from anna_train.model.trained_model import Base
from anna_train.recipe import TuneRecipe
from anna_train.run.adapter_card import TuneReport, adapter_card

ADAPTER_FILE: Final = "adapter_config.json"


def with_examples(tasks: TaskFile, examples: Mapping[str, Sequence[Example]]) -> TaskFile:
    """Return the tasks, and beside each that was trained with examples one that shows some."""
    entries = dict(tasks.tasks)
    for name, task_examples in examples.items():
        if task_examples:
            pairs = [
                {"query": example.query, "response": example.response} for example in task_examples
            ]
            task = entries[name].model_dump(exclude_none=True) | {"examples": pairs}
            entries[f"{name}-few-shot"] = type(entries[name]).model_validate(task)
    return tasks.model_copy(update={"tasks": entries})


def write_adapter(
    folder: Path,
    adapted: PeftModel,
    base: Base,
    recipe: TuneRecipe,
    tasks: TaskFile,
    report: TuneReport,
) -> None:
    """Fill a folder with the adapter and all that is told of it.

    Args:
        folder: Where; it exists.
        adapted: The trained model.
        base: What was trained over.
        recipe: What was asked.
        tasks: The prompts it was trained with.
        report: What came of it.
    """
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = recipe.base
    config.target_modules = list(recipe.lora.targets)  # peft keeps a set, whose order is not fixed
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    content = json.dumps(tasks.model_dump(exclude_none=True), indent=2, ensure_ascii=False)
    write_text(folder / ADAPTERS_FILE, content + "\n")
    write_prompts(folder, tasks.prompts(), base.modules.similarity)
    copy_modules(base.modules, base.spec, folder)
    for name in (*TOKENIZER_FILES, LIMIT_FILE):
        if (base.folder / name).exists():
            shutil.copyfile(base.folder / name, folder / name)
    _frame(folder, base.tokeniser.framing)
    write_text(folder / "recipe.yaml", _yaml(recipe.model_dump(mode="json")))
    write_text(folder / "README.md", adapter_card(recipe, tasks, report))


def _frame(folder: Path, framing: TokenFraming) -> None:
    """Have the tokenizer put around a text what training did, and cut none."""
    path, settings = folder / TOKENIZER_FILE, folder / CONFIG_FILE
    ends = read_ends(load_tokenizer(folder), path)
    if ends == Ends(framing.bos_id, framing.eos_id):
        write_text(path, uncut_json(path))
        return
    write_text(path, framed_json(path, framing.front_ids, framing.back_ids))
    added = {
        "add_bos_token": framing.bos_id is not None,
        "add_eos_token": framing.eos_id is not None,
    }
    write_text(settings, json.dumps(read_json(settings) | added, indent=2) + "\n")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
