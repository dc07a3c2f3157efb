"""How well artifacts find held-out documents."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from anna_train.run.retrieval import retrieval

from anna_export.backends import open_encoder


def ndcg_at_10(
    artifacts: Mapping[str, Path], queries: Sequence[str], documents: Sequence[str]
) -> dict[str, float]:
    """Return each artifact's nDCG@10 of prompted queries, by its name.

    Args:
        artifacts: Their folders, by name.
        queries: N texts.
        documents: N texts; each is the only answer to the query in its place.
    """
    scores = {}
    for name, folder in artifacts.items():
        encoder = open_encoder(folder)
        vectors = encoder.encode(queries, "query"), encoder.encode(documents, "document")
        scores[name] = retrieval(*vectors).ndcg_at_10
    return scores
