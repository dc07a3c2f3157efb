"""Writes the cached gradient of every case to a file: run alone, or as one of several processes."""

import sys
from itertools import product
from pathlib import Path

import torch
from anna_train.model.loss import Losses, compute_loss
from anna_train.recipe import LossRecipe
from anna_train.run.gradient import GradientSettings, compute_gradient
from anna_train.run.processes import Processes, joined
from safetensors.torch import save_file
from torch import Tensor

from tests.train import batches

BUDGET = 40
CASES = list(product(batches.LOSSES, (False, True), (0.0, 0.2)))


def loss_of(vectors: Tensor, recipe: LossRecipe) -> Losses:
    queries, documents = vectors[: batches.QUERIES], vectors[batches.QUERIES :]
    return compute_loss(queries, documents, batches.targets(), recipe)


def cached(processes: Processes, name: str, recompute: bool, dropout: float) -> dict[str, Tensor]:
    model = batches.model(dropout=dropout)
    settings = GradientSettings(BUDGET, recompute=recompute, seed=7)
    losses = compute_gradient(
        model.inner,
        batches.groups(),
        lambda vectors: loss_of(vectors, batches.LOSSES[name]),
        settings,
        processes,
    )
    case = f"{name}/{recompute}/{dropout}"
    tensors = {f"{case}/loss": losses.total.detach()}
    for weight_name, weight in model.weights().items():
        assert weight.grad is not None
        tensors[f"{case}/{weight_name}"] = weight.grad
    return tensors


def main() -> None:
    torch.set_num_threads(1)
    with joined() as processes:
        tensors: dict[str, Tensor] = {}
        for case in CASES:
            tensors |= cached(processes, *case)
        save_file(tensors, Path(sys.argv[1]) / f"{processes.rank}.safetensors")


if __name__ == "__main__":
    main()
