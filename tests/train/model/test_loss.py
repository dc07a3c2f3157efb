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
    values = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    return functional.normalize(values, dim=1)


def written_out(queries: Tensor, documents: Tensor, targets: Targets, recipe: LossRecipe) -> float:
    """Return the loss by plain loops over numbers."""
    total = 0.0
    widths = [*recipe.matryoshka, WIDTH]
    for width in widths:
        for query_index in range(QUERIES):
            query = functional.normalize(queries[query_index, :width], dim=0)
            cosines = [
                float(query @ functional.normalize(document[:width], dim=0))
                for document in documents
            ]
            full_cosines = [float(queries[query_index] @ document) for document in documents]
            own_documents = [
                index for index in targets.own_documents[query_index].tolist() if index >= 0
            ]
            other_documents = [
                index
                for index in range(DOCUMENTS)
                if targets.others[query_index, index]
                and index not in own_documents
                and (
                    recipe.false_negative_margin is None
                    or full_cosines[index]
                    <= full_cosines[own_documents[0]] + recipe.false_negative_margin
                )
            ]
            powers = {
                index: cosines[index] / recipe.temperature
                for index in [*own_documents, *other_documents]
            }
            if recipe.contrastive:
                over_all = math.log(sum(math.exp(power) for power in powers.values()))
                total += over_all - powers[own_documents[0]]
            if recipe.soft_labels:
                assert targets.teacher is not None
                logits = targets.teacher[query_index, : len(own_documents)].tolist()
                wanted = [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]
                over_own = math.log(sum(math.exp(powers[index]) for index in own_documents))
                total += recipe.soft_labels * sum(
                    share * (math.log(share) - (powers[index] - over_own))
                    for share, index in zip(wanted, own_documents, strict=True)
                )
    return total / QUERIES / len(widths)


@pytest.mark.parametrize("name", batches.LOSSES)
def test_loss_is_the_one_written_out(name: str) -> None:
    recipe, targets = batches.LOSSES[name], batches.targets()
    queries, documents = vectors(QUERIES, 1), vectors(DOCUMENTS, 2)
    recipe = recipe.model_copy(update={"temperature": 0.2})
    loss = compute_loss(queries, documents, targets, recipe)
    assert float(loss.total) == pytest.approx(
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
    own_documents = torch.arange(QUERIES)[:, None]
    targets = Targets(own_documents, torch.ones(QUERIES, QUERIES, dtype=torch.bool))
    recipe = LossRecipe(soft_labels=0, false_negative_margin=None, temperature=0.05)
    theirs = MultipleNegativesRankingLoss(SentenceTransformer(modules=[torch.nn.Identity()]), 20.0)
    wanted = theirs.compute_loss_from_embeddings([queries, documents], None)
    loss = compute_loss(queries, documents, targets, recipe).total
    assert float(loss) == pytest.approx(float(wanted), rel=1e-12)


def test_perfect_soft_labels_cost_nothing() -> None:
    queries, documents = vectors(QUERIES, 1), vectors(DOCUMENTS, 2)
    targets = batches.targets()
    scores = (queries @ documents.T / 0.02).gather(1, targets.own_documents.clamp_min(0))
    recipe = LossRecipe(contrastive=False, false_negative_margin=None)
    loss = compute_loss(
        queries, documents, Targets(targets.own_documents, targets.others, scores), recipe
    )
    assert abs(float(loss.total)) < 1e-12


def test_masked_share_is_of_the_others() -> None:
    documents = vectors(DOCUMENTS, 2)
    queries = documents[[6, 1, 2, 3, 4]]  # the first one's best match is another's document
    own_documents = torch.arange(QUERIES)[:, None]
    targets = Targets(own_documents, torch.ones(QUERIES, DOCUMENTS, dtype=torch.bool))
    recipe = LossRecipe(soft_labels=0, false_negative_margin=0.5)
    loss = compute_loss(queries, documents, targets, recipe)
    assert loss.masked == pytest.approx(1 / (QUERIES * (DOCUMENTS - 1)))
