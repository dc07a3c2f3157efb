"""Scores of docstring retrieval, STS-B and Banking77, of any vectors: a model's, or TF-IDF's."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from anna_train.run.retrieval import retrieval
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import KNeighborsClassifier

from anna_export.errors import MissingError

# Texts to (N, D) rows of unit length.
Encode = Callable[[list[str]], np.ndarray]
# From the texts that weights of words may be taken from to what encodes; a model ignores them.
Fit = Callable[[list[str]], Encode]
NEIGHBOURS: Final = 5


def tf_idf(texts: list[str]) -> Encode:
    """Return word TF-IDF with weights from these texts."""
    words = TfidfVectorizer(sublinear_tf=True, dtype=np.float32).fit(texts)
    return lambda texts: words.transform(texts).toarray()


def retrieved(queries: list[str], documents: list[str], fit: Fit) -> float:
    """Return nDCG@10 of queries, each of which the document in its place answers."""
    encode = fit(documents)
    return retrieval(encode(queries), encode(documents)).ndcg_at_10


def sts(folder: Path, fit: Fit) -> float:
    """Return Spearman's correlation of cosines with the scores of STS-B's test set.

    Raises:
        MissingError: If the folder has no such data.
    """
    table = _read(folder, "STSBenchmark", "test")
    first, second = table["sentence1"], table["sentence2"]
    encode = fit([*first, *second])
    cosines = (encode(first) * encode(second)).sum(axis=1)
    return float(spearmanr(cosines, table["score"]).statistic)


def banking(folder: Path, fit: Fit) -> float:
    """Return the share of Banking77's test queries that their nearest training ones name rightly.

    Raises:
        MissingError: If the folder has no such data.
    """
    train, test = (_read(folder, "Banking77Classification", split) for split in ("train", "test"))
    encode = fit(train["text"])
    nearest = KNeighborsClassifier(NEIGHBOURS).fit(encode(train["text"]), train["label"])
    return float(nearest.score(encode(test["text"]), test["label"]))


def _read(folder: Path, task: str, split: str) -> dict[str, list[Any]]:
    paths: Sequence[Path] = sorted((folder / "data" / task).glob(f"*{split}-*.parquet"))
    if not paths:
        raise MissingError(
            f"expected *{split}-*.parquet in {folder / 'data' / task}, found none; name a folder "
            "of MTEB data"
        )
    return dict(pq.read_table(paths[0]).to_pydict())
