"""Cached gradients against one plain graph: for every switch, alone and on two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from anna_train.run.gradient import GradientSettings, compute_gradient, mini_batches
from anna_train.run.gradient import _embed as embed_unit
from anna_train.run.processes import Processes
from safetensors.torch import load_file
from torch import Tensor

from tests.train import batches
from tests.train.run import gradient_worker as worker

ROOT = Path(__file__).parents[3]


def plain(name: str, recompute: bool, dropout: float) -> dict[str, Tensor]:
    """Return the gradient of one graph through all mini-batches at once."""
    model = batches.model(dropout=dropout)
    settings = GradientSettings(worker.BUDGET, recompute=recompute, seed=7)
    units = mini_batches(batches.groups(), worker.BUDGET)
    positions = [position for unit in units for position in unit.positions]
    parts = [embed_unit(model.inner, unit, index, settings) for index, unit in enumerate(units)]
    vectors = torch.cat(parts)[torch.tensor(positions).argsort()]
    loss = worker.loss_of(vectors, batches.LOSSES[name]).total
    loss.backward()
    case = f"{name}/{recompute}/{dropout}"
    tensors = {f"{case}/loss": loss.detach()}
    for key, weight in model.weights().items():
        assert weight.grad is not None
        tensors[f"{case}/{key}"] = weight.grad
    return tensors


def worst(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Return the largest difference of a tensor, relative to its length."""
    assert tensors.keys() == wanted.keys()
    return max(
        float((tensors[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted
    )


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """Return what each of two processes found, for all cases."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.run.gradient_worker", str(out)],
            cwd=ROOT,
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    return [load_file(out / f"{rank}.safetensors") for rank in (0, 1)]


@pytest.mark.parametrize(("name", "recompute", "dropout"), worker.CASES)
def test_cached_gradient_is_the_plain_one(name: str, recompute: bool, dropout: float) -> None:
    cached = worker.cached(Processes(), name, recompute, dropout)
    assert worst(cached, plain(name, recompute, dropout)) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recompute", "dropout"), worker.CASES)
def test_gradient_of_two_processes_is_that_of_one(
    name: str, recompute: bool, dropout: float, of_two: list[dict[str, Tensor]]
) -> None:
    wanted = plain(name, recompute, dropout)
    for cached in of_two:
        assert worst({key: cached[key] for key in wanted}, wanted) <= 1e-6


def test_budgets_differ_in_memory_alone() -> None:
    def gradient(budget: int) -> dict[str, Tensor]:
        model = batches.model()
        compute_gradient(
            model.inner,
            batches.groups(),
            lambda vectors: worker.loss_of(vectors, batches.LOSSES["all"]),
            GradientSettings(budget),
            Processes(),
        )
        return {
            name: weight.grad for name, weight in model.weights().items() if weight.grad is not None
        }

    # other mini-batches are padded otherwise, so sums are rounded otherwise
    assert worst(gradient(1), gradient(100_000)) <= 1e-5


def test_mini_batches_hold_every_text_once_within_the_budget() -> None:
    groups = batches.groups()
    units = mini_batches(groups, 40)
    assert sorted(position for unit in units for position in unit.positions) == list(range(12))
    texts = {
        position: ids
        for group in groups
        for position, ids in zip(group.positions, group.texts, strict=True)
    }
    for unit in units:
        assert [texts[position] for position in unit.positions] == unit.texts
        cost = len(unit.prefix) + len(unit.texts) * max(map(len, unit.texts))
        assert cost <= 40 or len(unit.texts) == 1


def test_work_is_shared_whole_and_evenly() -> None:
    costs = [5, 1, 9, 3, 3, 7, 2]
    shares = [Processes(rank, 3).share(costs) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == list(range(7))
    loads = [sum(costs[index] for index in share) for share in shares]
    assert max(loads) - min(loads) <= 2
