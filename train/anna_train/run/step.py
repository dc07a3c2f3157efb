"""One training step: a planned batch's gradient, and AdamW's answer to it."""

import math
from dataclasses import replace
from functools import partial

import torch

from anna_export.errors import DivergedError
from anna_train.data.training_data import DataSet
from anna_train.model.loss import Losses, Targets, compute_loss
from anna_train.model.trained_model import TrainedModel, require_gradients
from anna_train.plan.batch_plan import PlannedStep
from anna_train.recipe import OptimizerRecipe, TuneRecipe
from anna_train.run.gradient import GradientSettings, compute_gradient
from anna_train.run.prepare import Prepared
from anna_train.run.processes import Processes

# What take_step returns, in this order.
LOGGED = (
    "loss",
    "contrastive",
    "soft",
    "false_negatives",
    "gradient",
    "learning_rate",
    "tokens",
)


def take_step(
    recipe: TuneRecipe,
    prepared: Prepared,
    model: TrainedModel,
    optimizer: torch.optim.AdamW,
    step: int,
    settings: GradientSettings,
    processes: Processes,
) -> dict[str, float]:
    """Take one step, from 0, and return what is logged of it.

    Raises:
        DivergedError: If loss or gradient is not finite; the weights are as they were.
        InputError: If, in the first step, a LoRA B has no gradient.
    """
    planned = prepared.plan[step]
    data = prepared.sets[planned.data]
    batch = prepared.assembler.batch(planned, data)
    targets = batch.targets.to(processes.device)
    weights = model.weights()
    optimizer.zero_grad(set_to_none=True)
    seeded = replace(settings, seed=(recipe.seed << 24) + step)
    losses = compute_gradient(
        model.inner,
        batch.groups,
        partial(_loss, targets=targets, recipe=recipe),
        seeded,
        processes,
    )
    norm = math.nan
    if torch.isfinite(losses.total):
        if step == 0:
            require_gradients(weights)
        norm = float(torch.nn.utils.clip_grad_norm_(weights.values(), recipe.optimizer.clip))
    if not math.isfinite(norm):
        raise _diverged(step, planned, data, losses, norm)
    rate = recipe.optimizer.learning_rate * share_of_rate(
        recipe.optimizer, step, len(prepared.plan)
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return {
        "loss": float(losses.total.detach()),
        "contrastive": losses.contrastive,
        "soft": losses.soft,
        "false_negatives": losses.masked,
        "gradient": norm,
        "learning_rate": rate,
        "tokens": batch.tokens,
    }


def share_of_rate(recipe: OptimizerRecipe, step: int, steps: int) -> float:
    """Return the share of the full learning rate in a step, from 0: up in a line, then down."""
    warmup = recipe.warmup * steps
    if step + 1 < warmup:
        return (step + 1) / warmup
    left = (steps - step) / max(steps - warmup, 1)
    if recipe.schedule == "linear":
        return min(1.0, left)
    if recipe.schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * min(1.0, left)))
    return 1.0


def _loss(vectors: torch.Tensor, targets: Targets, recipe: TuneRecipe) -> Losses:
    count = len(targets.own_documents)
    return compute_loss(vectors[:count], vectors[count:], targets, recipe.loss)


def _diverged(
    step: int, planned: PlannedStep, data: DataSet, losses: Losses, norm: float
) -> DivergedError:
    lines = sorted(data.rows.line(row.row) for row in planned.rows)
    part = "loss" if not torch.isfinite(losses.total) else "gradient"
    value = float(losses.total.detach()) if part == "loss" else norm
    return DivergedError(
        f"expected a finite {part}, found {value} in step {step + 1}, of the lines "
        f"{', '.join(map(str, lines[:8]))}{' …' if len(lines) > 8 else ''} of {data.rows.path}; "
        "the last checkpoint is kept: lower optimizer.learning_rate and give `restart`"
    )
