"""Retrieval figures against cases computed by hand."""

import math

import numpy as np
import pytest
from anna_train.run.retrieval import Retrieval, retrieval

from anna_export.errors import ShapeError


def test_ranks_1_2_and_3_give_their_discounts() -> None:
    # query i scores document j as scores[i, j]: its own (the diagonal) is 1st, 2nd and 3rd
    scores = np.array([[0.9, 0.1, 0.0], [0.8, 0.5, 0.2], [0.7, 0.6, 0.3]])
    figures = retrieval(scores, np.eye(3))
    assert figures.ndcg_at_10 == pytest.approx((1 + 1 / math.log2(3) + 1 / 2) / 3)
    assert figures.recall_at_1 == pytest.approx(1 / 3)


def test_a_rank_past_10_scores_nothing() -> None:
    scores = np.eye(11)
    scores[0] = np.arange(11)  # its own document is the 11th
    assert retrieval(scores, np.eye(11)).ndcg_at_10 == pytest.approx(10 / 11)


def test_vectors_that_are_all_the_same_score_nothing() -> None:
    same = np.ones((20, 4)) / 2
    assert retrieval(same, same) == Retrieval(ndcg_at_10=0.0, recall_at_1=0.0)


@pytest.mark.parametrize("shape", [(2, 4), (3, 5), (0, 4)])
def test_arrays_that_do_not_pair_up_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match="one shape"):
        retrieval(np.zeros((0, 4) if shape[0] == 0 else (3, 4)), np.zeros(shape))
