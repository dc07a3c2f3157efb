"""How well queries find their documents: each query's own document against all the others."""

from dataclasses import dataclass

import numpy as np

from anna_export.errors import ShapeError


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Means over queries, each in 0..1."""

    ndcg_at_10: float
    recall_at_1: float


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
