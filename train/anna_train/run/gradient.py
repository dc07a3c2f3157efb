"""The gradient of a batch's loss in bounded memory, on any number of processes.

Vectors of all texts come first, the loss and its gradient with respect to them next, and the texts
are computed once more with their share of it (gradient caching). Those of the last mini-batch keep
what they computed, so a batch that fits in memory is computed once. Every process computes the same
loss from the vectors of all, and takes its own texts' share back through the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anna_train.model.forward import Decoder, embed
from anna_train.model.loss import Losses
from anna_train.plan.assemble import Group
from anna_train.run.processes import Processes

LossOf = Callable[[Tensor], Losses]
# Seeds of different steps and mini-batches differ.
_MOST_UNITS = 1 << 20


@dataclass(frozen=True, slots=True)
class GradientSettings:
    """How a gradient is computed.

    Args:
        mini_batch_tokens: Most tokens, padding included, whose activations are held at a time.
        recompute: Whether layers' activations are computed again in the backward pass.
        bf16: Whether matrix products are in bfloat16.
        seed: Of dropout, for this step; the same on every process.
    """

    mini_batch_tokens: int
    recompute: bool = False
    bf16: bool = False
    seed: int = 0


def compute_gradient(
    decoder: Decoder,
    groups: Sequence[Group],
    loss_of: LossOf,
    settings: GradientSettings,
    processes: Processes,
) -> Losses:
    """Add a batch's gradient to that of the model's weights; equal on every process.

    Where the loss is not finite, there is none.

    Args:
        decoder: The model, with LoRA in its linear layers.
        groups: The batch's token ids; their places are those of its N vectors.
        loss_of: Returns the loss of (N, D) vectors.
        settings: Memory, precision and seed.
        processes: Those that share the work.
    """
    units = mini_batches(groups, settings.mini_batch_tokens)
    mine = processes.share([_cost(unit) for unit in units])
    with_graph = _units_with_graph(units, mine, settings.mini_batch_tokens)
    vectors = _room(decoder, groups)
    graphs: dict[int, Tensor] = {}
    for index in mine:
        with torch.set_grad_enabled(index in with_graph):
            unit_vectors = _embed(decoder, units[index], index, settings)
        vectors[units[index].positions] = unit_vectors.detach()
        if index in with_graph:
            graphs[index] = unit_vectors
    processes.add_up([vectors])
    vectors.requires_grad_()
    losses = loss_of(vectors)
    if not torch.isfinite(losses.total):
        return losses  # its caller stops, and knows of which rows it is
    losses.total.backward()
    assert vectors.grad is not None
    for index in sorted(mine, key=lambda index: index not in with_graph):
        unit_vectors = (
            graphs.pop(index)
            if index in with_graph
            else _embed(decoder, units[index], index, settings)
        )
        unit_vectors.backward(vectors.grad[units[index].positions])
    processes.add_up(_gradients(decoder))
    return losses


def embed_groups(
    decoder: Decoder, groups: Sequence[Group], settings: GradientSettings, processes: Processes
) -> Tensor:
    """Return (N, D) float32 vectors without their gradient; equal on every process."""
    units = mini_batches(groups, settings.mini_batch_tokens)
    vectors = _room(decoder, groups)
    for index in processes.share([_cost(unit) for unit in units]):
        with torch.no_grad():
            vectors[units[index].positions] = _embed(decoder, units[index], index, settings)
    processes.add_up([vectors])
    return vectors


def _room(decoder: Decoder, groups: Sequence[Group]) -> Tensor:
    count = sum(len(group.positions) for group in groups)
    return torch.zeros(count, decoder.spec.embedding_dim, device=decoder.model.device)


def mini_batches(groups: Sequence[Group], most_tokens: int) -> list[Group]:
    """Cut groups into parts of like length that each have at most so many tokens, or one text."""
    parts = []
    for group in groups:
        part: list[int] = []
        for index in sorted(range(len(group.texts)), key=lambda index: len(group.texts[index])):
            width = len(group.texts[index])
            if part and len(group.prefix) + (len(part) + 1) * width > most_tokens:
                parts.append(_part(group, part))
                part = []
            part.append(index)
        parts.append(_part(group, part))
    return parts


def _part(group: Group, indices: Sequence[int]) -> Group:
    return Group(
        group.prefix,
        [group.texts[index] for index in indices],
        [group.positions[index] for index in indices],
        group.prompt_tokens,
    )


def _cost(unit: Group) -> int:
    return len(unit.prefix) + len(unit.texts) * max(map(len, unit.texts))


def _units_with_graph(units: Sequence[Group], mine: Sequence[int], most_tokens: int) -> set[int]:
    """Return the last of a process's mini-batches that are within the memory of one."""
    with_graph: set[int] = set()
    for index in reversed(mine):
        most_tokens -= _cost(units[index])
        if most_tokens < 0:
            break
        with_graph.add(index)
    return with_graph


def _embed(decoder: Decoder, unit: Group, index: int, settings: GradientSettings) -> Tensor:
    # both passes of a mini-batch, on whichever process, draw the same dropout
    torch.manual_seed(settings.seed * _MOST_UNITS + index)
    with torch.autocast(decoder.model.device.type, torch.bfloat16, enabled=settings.bf16):
        return embed(
            decoder,
            unit.texts,
            unit.prefix,
            prompt_tokens=unit.prompt_tokens,
            recompute=settings.recompute,
        )


def _gradients(decoder: Decoder) -> list[Tensor]:
    """Return the trained weights' gradients, made zero where this process had no share."""
    gradients = []
    for weight in decoder.model.parameters():
        if weight.requires_grad:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            gradients.append(weight.grad)
    return gradients
