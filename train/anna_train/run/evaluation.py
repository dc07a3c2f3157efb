"""How well a model under training retrieves: nDCG@10 of held-out rows, zero-shot and few-shot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from anna_export.errors import InputError
from anna_export.text.prompt_formats import Example
from anna_export.text.prompts import NO_PROMPT
from anna_train.data.training_data import DataSet
from anna_train.model.forward import Decoder
from anna_train.plan.assemble import Assembler, Group
from anna_train.recipe import EvaluationRecipe
from anna_train.run.gradient import GradientSettings, embed_groups
from anna_train.run.processes import Processes
from anna_train.run.retrieval import retrieval


@dataclass(frozen=True, slots=True)
class HeldOutSet:
    """Held-out rows in token ids.

    Args:
        name: Of the figure.
        groups: Of the queries and of the documents.
        rows: How many there are of each.
    """

    name: str
    groups: list[Group]
    rows: int


def held_out(
    recipe: EvaluationRecipe,
    sets: Sequence[DataSet],
    examples: Mapping[str, Sequence[Example]],
    assembler: Assembler,
) -> list[HeldOutSet]:
    """Return what is evaluated: each set with its task's instruction alone, and with examples.

    Args:
        recipe: Whether there are examples.
        sets: The rows; a row's first positive answers it.
        examples: By the name of a task, its examples for the few-shot figure.
        assembler: Words and cuts them as training does.

    Raises:
        InputError: If a set has too few rows to rank.
    """
    held_out_sets = []
    for data, data_recipe in zip(sets, recipe.data, strict=True):
        if len(data) < 2:
            raise InputError(f"expected two rows or more in {data.rows.path}, found {len(data)}")
        rows, limits = list(data.rows), assembler.limits
        count = len(rows)
        queries, documents = [row.query for row in rows], [row.pos[0] for row in rows]
        prompts = {"zero-shot": data.task.prompt(())}
        if examples.get(data_recipe.task):
            prompts["few-shot"] = data.task.prompt(examples[data_recipe.task])
        of_documents = NO_PROMPT if data.document_task is None else data.document_task.prompt(())
        for name, prompt in prompts.items():
            groups = [
                assembler.group(queries, prompt, limits.query, range(count)),
                assembler.group(documents, of_documents, limits.document, range(count, 2 * count)),
            ]
            held_out_sets.append(HeldOutSet(f"{data.name} {name}", groups, len(rows)))
    return held_out_sets


def evaluate(
    decoder: Decoder,
    held_out_sets: Sequence[HeldOutSet],
    settings: GradientSettings,
    processes: Processes,
) -> dict[str, float]:
    """Return each one's nDCG@10; equal on every process."""
    decoder.model.eval()
    try:
        with torch.no_grad():
            return {data.name: _ndcg(decoder, data, settings, processes) for data in held_out_sets}
    finally:
        decoder.model.train()


def _ndcg(
    decoder: Decoder, held_out_set: HeldOutSet, settings: GradientSettings, processes: Processes
) -> float:
    vectors = embed_groups(decoder, held_out_set.groups, settings, processes).cpu().numpy()
    if not np.isfinite(vectors).all():
        return float("nan")
    return retrieval(vectors[: held_out_set.rows], vectors[held_out_set.rows :]).ndcg_at_10
