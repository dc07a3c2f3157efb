"""The training loss: InfoNCE, soft labels, false-negative mask and Matryoshka, each a switch."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from anna_train.recipe import LossRecipe


@dataclass(frozen=True, slots=True)
class Targets:
    """What the vectors of n queries and m documents are held to.

    Args:
        own_documents: (n, 1 + K) int64 indices of each query's positive, then its negatives,
            among the documents; -1 where it has fewer.
        others: (n, m) bool: whether another query's document stands as a negative for a query.
        teacher: (n, 1 + K) float32, a teacher's logits for `own_documents`; None: no soft labels.
    """

    own_documents: Tensor
    others: Tensor
    teacher: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """Return the same on a device."""
        teacher = None if self.teacher is None else self.teacher.to(device)
        return type(self)(self.own_documents.to(device), self.others.to(device), teacher)


@dataclass(frozen=True, slots=True)
class Losses:
    """Means over a batch's queries.

    Args:
        total: What is minimised; a scalar.
        contrastive: Its InfoNCE, over all widths.
        soft: The divergence from the soft labels, unweighted; 0 where there are none.
        masked: Share of the other queries' documents that were taken for false negatives.
    """

    total: Tensor
    contrastive: float
    soft: float
    masked: float


def compute_loss(
    queries: Tensor, documents: Tensor, targets: Targets, recipe: LossRecipe
) -> Losses:
    """Return the loss of a whole batch.

    Args:
        queries: (n, D) rows of unit length.
        documents: (m, D) rows of unit length.
        targets: What they are held to.
        recipe: The switches.
    """
    candidates = _own_documents(targets, len(documents))
    others, masked = targets.others & ~candidates, 0.0
    if recipe.false_negative_margin is not None:
        scores = (queries @ documents.T).detach()
        positive = scores.gather(1, targets.own_documents[:, :1])
        false = others & (scores > positive + recipe.false_negative_margin)
        masked = float(false.sum() / others.sum().clamp_min(1))
        others = others & ~false
    candidates = candidates | others
    zero = queries.new_zeros(())
    contrastive, soft = zero, zero
    widths = [*recipe.matryoshka, queries.shape[1]]
    for width in widths:
        scores = _cut(queries, width) @ _cut(documents, width).T / recipe.temperature
        if recipe.contrastive:
            logits = scores.masked_fill(~candidates, -torch.inf)
            contrastive = contrastive + functional.cross_entropy(
                logits, targets.own_documents[:, 0]
            )
        if recipe.soft_labels and targets.teacher is not None:
            soft = soft + _divergence(scores, targets.own_documents, targets.teacher)
    contrastive, soft = contrastive / len(widths), soft / len(widths)
    total = contrastive + recipe.soft_labels * soft
    return Losses(total, float(contrastive.detach()), float(soft.detach()), masked)


def _divergence(scores: Tensor, own_documents: Tensor, teacher: Tensor) -> Tensor:
    """Mean over queries of the divergence (KL) of the student's softmax from the teacher's."""
    missing = own_documents < 0
    student = scores.gather(1, own_documents.clamp_min(0)).masked_fill(missing, -torch.inf)
    wanted = teacher.masked_fill(missing, -torch.inf).log_softmax(dim=1)
    # 0 * log 0 is 0 where a query has fewer negatives
    each = wanted.exp() * (wanted - student.log_softmax(dim=1)).masked_fill(missing, 0.0)
    return each.sum(dim=1).mean()


def _own_documents(targets: Targets, documents: int) -> Tensor:
    """Return (n, m) bool: each query's own positive and negatives."""
    is_own = torch.zeros(
        len(targets.own_documents),
        documents + 1,
        dtype=torch.bool,
        device=targets.own_documents.device,
    )
    # the missing ones fall into a column that is cut off
    is_own.scatter_(
        1, targets.own_documents.masked_fill(targets.own_documents < 0, documents), True
    )
    return is_own[:, :documents]


def _cut(vectors: Tensor, width: int) -> Tensor:
    return vectors if width == vectors.shape[1] else functional.normalize(vectors[:, :width], dim=1)
