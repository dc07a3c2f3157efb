"""The candidates of queries: what BM25 or the dense retriever finds, with features of each pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import faiss
import numpy as np
from scipy import sparse

from anna_train.mining.collection import Collection, Question
from anna_train.mining.lexical import CharacterGrams, Words

FEATURES: Final = (
    "BM25, in standard deviations from the mean of the query's candidates",
    "dense cosine",
    "cosine of the character grams",
    "cosine of the words' TF-IDF",
    "1 / BM25 rank",
    "1 / dense rank",
    "shorter length / longer length",
)
# (B, N) BM25 scores held at once
_SCORES: Final = 2**23
_QUERIES: Final = 256


@dataclass(frozen=True, slots=True)
class Pool:
    """B queries with up to C texts each, in the order of their places; arrays are (B, C).

    A query's own answers and kept negatives are in it too, found or not.
    """

    texts: np.ndarray  # int64 in the collection's texts; -1: nothing there
    bm25: np.ndarray  # float32
    dense: np.ndarray  # float32 cosines
    bm25_rank: np.ndarray  # int64 from 1; 0: not that far up
    dense_rank: np.ndarray
    answer: np.ndarray  # bool: a positive of the query
    candidate: np.ndarray  # bool: was found, and may be a negative
    features: np.ndarray  # (B, C, 7) float32, as FEATURES says

    @property
    def filled(self) -> np.ndarray:
        """Where there is a text."""
        return self.texts >= 0

    @property
    def retrieved(self) -> np.ndarray:
        """Where there is a text that a retriever found."""
        return (self.bm25_rank > 0) | (self.dense_rank > 0)


class Retriever:
    """Both retrievers over a collection.

    Args:
        collection: The texts; the first `corpus` of them are searched.
        words: All of them as words.
        vectors: (N, D) float32 of all of them, of unit length.
        depth: How many texts each retriever finds.
    """

    def __init__(
        self, collection: Collection, words: Words, vectors: np.ndarray, depth: int
    ) -> None:
        self.collection = collection
        self.batch = max(1, min(_QUERIES, _SCORES // len(collection.texts)))
        self._depth = min(depth, collection.corpus)
        self._words, self._vectors = words, vectors
        self._grams = CharacterGrams(collection.texts)
        self._lengths = np.array([len(text) for text in collection.texts], dtype=np.float32)
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors[: collection.corpus]))

    def pool(self, questions: Sequence[Question], vectors: np.ndarray) -> Pool:
        """Find the candidates of queries.

        Args:
            questions: B queries, at most `batch`.
            vectors: (B, D) float32 of them, of unit length.
        """
        queries = [question.query for question in questions]
        bm25 = self._words.bm25(queries)
        lexical = _best(bm25[:, : self.collection.corpus], self._depth)
        _, dense = self._index.search(np.ascontiguousarray(vectors), self._depth)
        texts = _union(questions, lexical, dense)
        filled, rows = texts >= 0, np.arange(len(texts))[:, None]
        unique, inverse = np.unique(np.where(filled, texts, 0), return_inverse=True)
        inverse = inverse.reshape(texts.shape)
        bm25_of = bm25[rows, np.maximum(texts, 0)]
        dense_of = (vectors @ self._vectors[unique].T)[rows, inverse]
        grams = self._grams.weigh([self.collection.texts[index] for index in unique])
        grams_of = _products(self._grams.weigh(queries), grams)[rows, inverse]
        words_of = _products(self._words.weigh(queries), self._words.vectors[unique])[rows, inverse]
        bm25_rank, dense_rank = _ranks(texts, lexical), _ranks(texts, dense)
        retrieved = (bm25_rank > 0) | (dense_rank > 0)
        lengths = np.array([[len(query)] for query in queries], dtype=np.float32)
        others = self._lengths[np.maximum(texts, 0)]
        features = np.stack(
            [
                _standardised(bm25_of, retrieved),
                dense_of,
                grams_of,
                words_of,
                1 / np.where(bm25_rank > 0, bm25_rank, np.inf),
                1 / np.where(dense_rank > 0, dense_rank, np.inf),
                np.minimum(lengths, others) / np.maximum(np.maximum(lengths, others), 1),
            ],
            axis=2,
        ).astype(np.float32)
        return Pool(
            texts=texts,
            bm25=bm25_of,
            dense=dense_of,
            bm25_rank=bm25_rank,
            dense_rank=dense_rank,
            answer=_holds(texts, [question.answers for question in questions]),
            candidate=retrieved & ~_holds(texts, [question.barred for question in questions]),
            features=features,
        )


def _best(scores: np.ndarray, depth: int) -> np.ndarray:
    """Return (B, depth) columns of the best scores above 0, best first; -1 where there are fewer.

    Equal scores are in the order of their columns.
    """
    best = np.full((len(scores), depth), -1, dtype=np.int64)
    # finding the last one first sorts depth texts, not the corpus
    last = -np.partition(-scores, depth - 1, axis=1)[:, depth - 1]
    for number, row in enumerate(scores):
        columns = np.flatnonzero((row >= last[number]) & (row > 0))
        columns = columns[np.argsort(-row[columns], kind="stable")][:depth]
        best[number, : len(columns)] = columns
    return best


def _union(questions: Sequence[Question], *retrieved: np.ndarray) -> np.ndarray:
    """Return (B, C) distinct places in ascending order, the questions' own among them."""
    rows = []
    for number, question in enumerate(questions):
        question_texts = np.array([*question.answers, *question.pos, *question.neg], dtype=np.int64)
        row = np.unique(np.concatenate([question_texts, *(texts[number] for texts in retrieved)]))
        rows.append(row[row >= 0])
    texts = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        texts[number, : len(row)] = row
    return texts


def _ranks(texts: np.ndarray, retrieved: np.ndarray) -> np.ndarray:
    """Return (B, C) ranks from 1 of places in what was found, 0 where they are not in it."""
    ranks = np.zeros(texts.shape, dtype=np.int64)
    for number, row in enumerate(retrieved):
        row = row[row >= 0]
        length = int((texts[number] >= 0).sum())
        ranks[number, np.searchsorted(texts[number, :length], row)] = np.arange(1, len(row) + 1)
    return ranks


def _holds(texts: np.ndarray, members: Sequence[frozenset[int] | tuple[int, ...]]) -> np.ndarray:
    """Return (B, C) whether each row's places are among its members."""
    return np.stack(
        [np.isin(row, list(row_members)) for row, row_members in zip(texts, members, strict=True)]
    )


def _products(left: sparse.csr_matrix, right: sparse.csr_matrix) -> np.ndarray:
    return np.asarray((left @ right.T).toarray(), dtype=np.float32)


def _standardised(scores: np.ndarray, retrieved: np.ndarray) -> np.ndarray:
    count = np.maximum(retrieved.sum(axis=1, keepdims=True), 1)
    mean = np.where(retrieved, scores, 0).sum(axis=1, keepdims=True) / count
    square = np.where(retrieved, (scores - mean) ** 2, 0).sum(axis=1, keepdims=True) / count
    return (scores - mean) / np.maximum(np.sqrt(square), 1e-6)
