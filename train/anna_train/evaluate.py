"""How well queries find their documents: each query's own document against all the others."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anna_export.errors import ShapeError


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Means over queries, each in 0..1."""

    ndcg_at_10: float
    recall_at_1: float


@dataclass(frozen=True, slots=True)
class Scores:
    """One task's score by every model, each in 0..1; None: not measured."""

    metric: str
    tf_idf: float
    base: float
    base_few_shot: float | None
    tuned: float
    tuned_few_shot: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """How well the models do, and how far the adapter moves vectors.

    Documents never carry a prompt: theirs is empty.
    """

    train_pairs: int  # of the base
    evaluated_pairs: int
    base: Retrieval  # queries without a prompt
    base_prompted: Retrieval
    tuned: Retrieval  # queries with their prompt, without examples
    document_cosine: float  # mean, base against tuned vector of the same document
    query_cosine: float  # the same of prompted queries
    tasks: Mapping[str, Scores]


def retrieval(queries: np.ndarray, documents: np.ndarray) -> Retrieval:
    """Rank all documents for every query; the one in the query's own row is the only right one.

    A document of equal score is ranked before the right one, so vectors that are all the same
    score nothing.

    Args:
        queries: (N, D) rows of unit length.
        documents: (N, D) rows of unit length.

    Raises:
        ShapeError: If the two do not have the same shape, or no rows.
    """
    if queries.shape != documents.shape or queries.ndim != 2 or not len(queries):
        raise ShapeError(
            f"expected queries and documents of one shape (N, D), found {queries.shape} and "
            f"{documents.shape}; row i of the documents answers row i of the queries"
        )
    scores = queries @ documents.T
    rank = (scores >= np.diagonal(scores)[:, None]).sum(axis=1)
    gain = np.where(rank <= 10, 1 / np.log2(rank + 1), 0.0)
    return Retrieval(ndcg_at_10=float(gain.mean()), recall_at_1=float((rank == 1).mean()))
