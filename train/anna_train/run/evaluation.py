"""How well a model under training retrieves: nDCG@10 of held-out rows, zero-shot and few-shot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import MistralModel

from anna_export.errors import InputError
from anna_export.text.prompt_formats import Example
from anna_export.text.prompts import NO_PROMPT, Prompt
from anna_train.data.training_data import DataSet
from anna_train.plan.assemble import Assembler, Group, shared
from anna_train.recipe import EvaluationRecipe
from anna_train.run.gradient import Settings, embed_groups
from anna_train.run.processes import Processes
from anna_train.run.retrieval import retrieval


@dataclass(frozen=True, slots=True)
class Held:
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
    shown: Mapping[str, Sequence[Example]],
    assembler: Assembler,
) -> list[Held]:
    """Return what is evaluated: each set with its task's instruction alone, and with examples.

    Args:
        recipe: Whether there are examples.
        sets: The rows; a row's first positive answers it.
        shown: By the name of a task, its examples for the few-shot figure.
        assembler: Words and cuts them as training does.

    Raises:
        InputError: If a set has too few rows to rank.
    """
    found = []
    for data, asked in zip(sets, recipe.data, strict=True):
        if len(data) < 2:
            raise InputError(f"expected two rows or more in {data.rows.path}, found {len(data)}")
        rows = list(data.rows)
        queries, documents = [row.query for row in rows], [row.pos[0] for row in rows]
        prompts = {"zero-shot": data.task.prompt(())}
        if shown.get(asked.task):
            prompts["few-shot"] = data.task.prompt(shown[asked.task])
        of_documents = NO_PROMPT if data.document_task is None else data.document_task.prompt(())
        for name, prompt in prompts.items():
            groups = [
                _group(assembler, queries, prompt, assembler.limits.query, 0),
                _group(assembler, documents, of_documents, assembler.limits.document, len(rows)),
            ]
            found.append(Held(f"{data.name} {name}", groups, len(rows)))
    return found


def evaluate(
    model: MistralModel, held: Sequence[Held], settings: Settings, processes: Processes
) -> dict[str, float]:
    """Return each one's nDCG@10; equal on every process."""
    model.eval()
    try:
        with torch.no_grad():
            return {one.name: _ndcg(model, one, settings, processes) for one in held}
    finally:
        model.train()


def _ndcg(model: MistralModel, held: Held, settings: Settings, processes: Processes) -> float:
    vectors = embed_groups(model, held.groups, settings, processes).cpu().numpy()
    if not np.isfinite(vectors).all():
        return float("nan")
    return retrieval(vectors[: held.rows], vectors[held.rows :]).ndcg_at_10


def _group(
    assembler: Assembler, texts: Sequence[str], prompt: Prompt, limit: int, first: int
) -> Group:
    ids = assembler.tokeniser.ids(assembler.tokeniser.truncate(texts, limit), prompt)
    return shared(ids, list(range(first, first + len(texts))))
