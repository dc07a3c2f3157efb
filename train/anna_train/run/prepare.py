"""Everything a training run needs before its model is loaded, read and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from anna_export.progress import Stage
from anna_export.text.prompt_file import TaskFile, read_task_file
from anna_export.text.prompt_formats import Example
from anna_train.data.training_data import DataSet, require_names
from anna_train.model.trained_model import Base, open_base, require_targets
from anna_train.plan.assemble import Assembler
from anna_train.plan.batch_plan import BatchPlan, compile_plan, made_from
from anna_train.plan.memory import Forecast, forecast
from anna_train.recipe import DataRecipe, TuneRecipe
from anna_train.run.evaluation import HeldOutSet, held_out


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a run needs before its model is loaded.

    Args:
        base: The base model.
        tasks: The prompts.
        sets: The data sets, by name.
        plan: What every step sees.
        assembler: Makes batches of it.
        examples: By the name of a task, what evaluation and the finished prompts show.
        held_out_sets: What is evaluated.
        forecast: Memory, and the mini-batch.
    """

    base: Base
    tasks: TaskFile
    sets: Mapping[str, DataSet]
    plan: BatchPlan
    assembler: Assembler
    examples: Mapping[str, Sequence[Example]]
    held_out_sets: Sequence[HeldOutSet]
    forecast: Forecast


def prepare(
    recipe: TuneRecipe, stage: Stage, device: torch.device, plan_file: Path | None = None
) -> Prepared:
    """Read and check everything, and compile the plan.

    Args:
        recipe: What is asked.
        stage: Shows reading and drawing.
        device: Where it will be computed.
        plan_file: A plan of the same recipe and data, used in place of compiling one.

    Raises:
        AnnaError: If anything cannot be used as it is.
    """
    base, tasks = open_base(recipe.base), read_task_file(recipe.prompts)
    require_targets(base.spec, recipe.lora)
    require_names(recipe.data)
    require_names(recipe.evaluation.data)
    sets = {data.path.stem: _open(data, tasks, recipe, stage) for data in recipe.data}
    unscored = recipe.model_copy(
        update={"loss": recipe.loss.model_copy(update={"soft_labels": 0.0, "contrastive": True})}
    )
    held_sets = [_open(data, tasks, unscored, stage) for data in recipe.evaluation.data]
    assembler = Assembler(base.tokeniser, recipe.limits, base.spec)
    for data in (*sets.values(), *held_sets):
        assembler.require_room(data.task, max(recipe.examples.most, recipe.evaluation.examples))
    plan = _plan(recipe, list(sets.values()), assembler, stage, plan_file)
    examples = {
        data.task: _fixed_examples(sets[data.path.stem], recipe, assembler)
        for data in recipe.data
        if sets[data.path.stem].task.takes_examples
    }
    held_out_sets = held_out(recipe.evaluation, held_sets, examples, assembler)
    limits = recipe.limits
    longest = max(limits.query, limits.document) + 2
    return Prepared(
        base,
        tasks,
        sets,
        plan,
        assembler,
        examples,
        held_out_sets,
        forecast(base.spec, recipe, device, longest),
    )


def _open(data: DataRecipe, tasks: TaskFile, recipe: TuneRecipe, stage: Stage) -> DataSet:
    with stage(f"read {data.path.stem}", "rows") as progress:
        return DataSet.open(data, tasks, recipe, progress)


def _plan(
    recipe: TuneRecipe,
    sets: Sequence[DataSet],
    assembler: Assembler,
    stage: Stage,
    plan_file: Path | None,
) -> BatchPlan:
    """Compile the plan, or take the file's if it was compiled from the same."""
    if plan_file is not None and plan_file.exists():
        plan = BatchPlan.read(plan_file)
        if plan.made_from == made_from(recipe, sets):
            return plan
    with stage("plan", "steps") as progress:
        return compile_plan(recipe, sets, assembler.count_cut, progress)


def _fixed_examples(data: DataSet, recipe: TuneRecipe, assembler: Assembler) -> list[Example]:
    """Draw the examples that evaluation and the finished prompts show."""
    generator = np.random.default_rng([recipe.seed, 2])
    count = min(recipe.evaluation.examples, len(data))
    rows = generator.choice(len(data), size=count, replace=False).tolist()
    return assembler.examples(data.rows[row] for row in rows)
