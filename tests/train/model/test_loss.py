"""The loss against the same written out query by query, and by the libraries' own."""

import math

import pytest
import torch
from anna_train.model.loss import Targets, compute_loss
from anna_train.recipe import LossRecipe
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from torch.nn import functional

from tests.train import batches

QUERIES, DOCUMENTS, WIDTH = 5, 7, 24


def vectors(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    return functional.normalize(found, dim=1)


def written_out(queries: Tensor, documents: Tensor, targets: Targets, recipe: LossRecipe) -> float:
    """Return the loss by plain loops over numbers."""
    total = 0.0
    widths = [*recipe.matryoshka, WIDTH]
    for width in widths:
        for place in range(QUERIES):
            query = functional.normalize(queries[place, :width], dim=0)
            cosines = [
                float(query @ functional.normalize(document[:width], dim=0))
                for document in documents
            ]
            whole = [float(queries[place] @ document) for document in documents]
            own = [index for index in targets.own[place].tolist() if index >= 0]
            rivals = [
                index
                for index in range(DOCUMENTS)
                if targets.others[place, index]
                and index not in own
                and (
                    recipe.false_negative_margin is None
                    or whole[index] <= whole[own[0]] + recipe.false_negative_margin
                )
            ]
            powers = {index: cosines[index] / recipe.temperature for index in [*own, *rivals]}
            if recipe.contrastive:
                over_all = math.log(sum(math.exp(power) for power in powers.values()))
                total += over_all - powers[own[0]]
            if recipe.soft_labels:
                assert targets.teacher is not None
                logits = targets.teacher[place, : len(own)].tolist()
                wanted = [math.exp(one) / sum(map(math.exp, logits)) for one in logits]
                over_own = math.log(sum(math.exp(powers[index]) for index in own))
                total += recipe.soft_labels * sum(
                    share * (math.log(share) - (powers[index] - over_own))
                    for share, index in zip(wanted, own, strict=True)
                )
    return total / QUERIES / len(widths)


@pytest.mark.parametrize("name", batches.LOSSES)
def test_loss_is_the_one_written_out(name: str) -> None:
    recipe, targets = batches.LOSSES[name], batches.targets()
    queries, documents = vectors(QUERIES, 1), vectors(DOCUMENTS, 2)
    recipe = recipe.model_copy(update={"temperature": 0.2})
    found = compute_loss(queries, documents, targets, recipe)
    assert float(found.total) == pytest.approx(
        written_out(queries, documents, targets, recipe), rel=1e-6
    )


def test_switches_do_something() -> None:
    queries, documents = vectors(QUERIES, 1), vectors(DOCUMENTS, 2)
    totals = {
        name: float(compute_loss(queries, documents, batches.targets(), recipe).total)
        for name, recipe in batches.LOSSES.items()
    }
    assert len({round(total, 6) for total in totals.values()}) == len(totals)


def test_in_batch_infonce_is_that_of_sentence_transformers() -> None:
    queries, documents = vectors(QUERIES, 1), vectors(QUERIES, 2)
    own = torch.arange(QUERIES)[:, None]
    targets = Targets(own, torch.ones(QUERIES, QUERIES, dtype=torch.bool))
    recipe = LossRecipe(soft_labels=0, false_negative_margin=None, temperature=0.05)
    theirs = MultipleNegativesRankingLoss(SentenceTransformer(modules=[torch.nn.Identity()]), 20.0)
    wanted = theirs.compute_loss_from_embeddings([queries, documents], None)
    found = compute_loss(queries, documents, targets, recipe).total
    assert float(found) == pytest.approx(float(wanted), rel=1e-12)


def test_perfect_soft_labels_cost_nothing() -> None:
    queries, documents = vectors(QUERIES, 1), vectors(DOCUMENTS, 2)
    targets = batches.targets()
    scores = (queries @ documents.T / 0.02).gather(1, targets.own.clamp_min(0))
    recipe = LossRecipe(contrastive=False, false_negative_margin=None)
    found = compute_loss(queries, documents, Targets(targets.own, targets.others, scores), recipe)
    assert abs(float(found.total)) < 1e-12


def test_masked_share_is_of_the_others() -> None:
    documents = vectors(DOCUMENTS, 2)
    queries = documents[[6, 1, 2, 3, 4]]  # the first one's best match is another's document
    own = torch.arange(QUERIES)[:, None]
    targets = Targets(own, torch.ones(QUERIES, DOCUMENTS, dtype=torch.bool))
    recipe = LossRecipe(soft_labels=0, false_negative_margin=0.5)
    found = compute_loss(queries, documents, targets, recipe)
    assert found.masked == pytest.approx(1 / (QUERIES * (DOCUMENTS - 1)))
