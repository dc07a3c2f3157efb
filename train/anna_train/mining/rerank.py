"""The reranker: what scores each query with each of its candidates."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from sklearn.linear_model import LogisticRegression

from anna_export.errors import InputError, MissingError, UnsupportedError
from anna_train.data.rows import text_key
from anna_train.mining.collection import Question
from anna_train.mining.pool import Pool

FOLDS: Final = 2
# fewer tell a good weight from a bad one by chance
MIN_QUERIES: Final = 16
FIT_QUERIES: Final = 1_000  # of each fold
FIT_NEGATIVES: Final = 8  # of each query
_CONSTANT: Final = 1e-9


class Reranker(Protocol):
    """Scores pairs, and says what a score is worth."""

    def logits(self, questions: Sequence[Question], pool: Pool, texts: Sequence[str]) -> np.ndarray:
        """Return (B, C) float64 scores; any value where the pool has no text."""
        ...

    def calibrate(self, logits: np.ndarray) -> np.ndarray:
        """Return scores on a scale whose differences and shares mean something."""
        ...


class DenseReranker:
    """No reranker: the dense retriever's cosines are the scores."""

    def logits(self, questions: Sequence[Question], pool: Pool, texts: Sequence[str]) -> np.ndarray:
        """Return the cosines."""
        return pool.dense.astype(np.float64)

    def calibrate(self, logits: np.ndarray) -> np.ndarray:
        """Return the cosines as they are."""
        return logits


class CrossEncoderReranker:
    """A sentence-transformers CrossEncoder of one score, read from disk.

    Raises:
        UnsupportedError: If it gives another number of scores.
    """

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import CrossEncoder

        self._model = CrossEncoder(str(folder), local_files_only=True)
        if self._model.num_labels != 1:
            raise UnsupportedError(
                f"expected a reranker of one score a pair, found {self._model.num_labels} in "
                f"{folder}"
            )

    def logits(self, questions: Sequence[Question], pool: Pool, texts: Sequence[str]) -> np.ndarray:
        """Return the model's outputs, before its activation; one pass over all pairs."""
        from torch.nn import Identity

        rows, columns = np.nonzero(pool.filled)
        pairs = [
            (questions[row].query, texts[pool.texts[row, column]])
            for row, column in zip(rows, columns, strict=True)
        ]
        logits = np.zeros(pool.texts.shape)
        logits[rows, columns] = self._model.predict(
            pairs, activation_fn=Identity(), show_progress_bar=False
        )
        return logits

    def calibrate(self, logits: np.ndarray) -> np.ndarray:
        """Return probabilities."""
        return sigmoid(logits)


@dataclass(frozen=True, slots=True)
class LearnedReranker:
    """A logistic regression over the pool's features, one for each half of the queries.

    A half is scored by what was fitted on the other, so no query by what has seen its answer.

    Args:
        weights: (2, 7) of each half's scorer.
        biases: (2,).
        fold: Each query key's half.
    """

    weights: np.ndarray
    biases: np.ndarray
    fold: Mapping[str, int]

    def logits(self, questions: Sequence[Question], pool: Pool, texts: Sequence[str]) -> np.ndarray:
        """Return the log-odds that a text answers the query, by the other half's scorer."""
        folds = [self.fold[text_key(question.query)] for question in questions]
        scores = np.einsum("bcf,bf->bc", pool.features.astype(np.float64), self.weights[folds])
        return scores + self.biases[folds][:, None]

    def calibrate(self, logits: np.ndarray) -> np.ndarray:
        """Return probabilities."""
        return sigmoid(logits)


def folds_of(keys: Collection[str], seed: int) -> dict[str, int]:
    """Halve query keys by chance, the same way in any order of theirs.

    Raises:
        InputError: If there are too few.
    """
    if len(keys) < MIN_QUERIES:
        raise InputError(
            f"expected {MIN_QUERIES} different queries or more to learn a reranker from, found "
            f"{len(keys)}; give more, or a folder or none as `reranker`"
        )
    shuffled = sorted(keys, key=lambda key: (number_of(seed, key), key))
    return {key: rank % FOLDS for rank, key in enumerate(shuffled)}


def fit_keys(fold: Mapping[str, int], seed: int) -> list[str]:
    """Choose the queries of both halves that a reranker is fitted on."""
    shuffled = sorted(fold, key=lambda key: (number_of(seed, key), key))
    return shuffled[: FOLDS * FIT_QUERIES]


def fit(
    pools: Iterable[tuple[Sequence[Question], Pool]], fold: Mapping[str, int], seed: int
) -> LearnedReranker:
    """Fit each half's scorer on the other half.

    Args:
        pools: Of queries of both halves: their positives against candidates drawn by chance.
        fold: Each query key's half.
        seed: Start of the drawing.

    Raises:
        InputError: If what is retrieved for a half has no positives, or nothing else.
    """
    features: list[list[np.ndarray]] = [[] for _ in range(FOLDS)]
    labels: list[list[np.ndarray]] = [[] for _ in range(FOLDS)]
    for questions, pool in pools:
        for number, question in enumerate(questions):
            key = text_key(question.query)
            # what no retriever found could only be a positive: it would teach that nothing found
            # is the mark of one
            retrieved, positive = pool.retrieved[number], pool.answer[number]
            row_negative = np.isin(pool.texts[number], question.neg) & retrieved & ~positive
            positives = np.flatnonzero(positive & retrieved)
            candidates = np.flatnonzero(pool.candidate[number] | row_negative)
            drawn = np.random.default_rng(number_of(seed, key)).permutation(candidates)
            chosen = np.concatenate([positives, drawn[:FIT_NEGATIVES]])
            # what is scored in a half is what was fitted on the other
            half = 1 - fold[key]
            features[half].append(pool.features[number, chosen])
            labels[half].append(np.arange(len(chosen)) < len(positives))
    fitted = [
        _regression(np.concatenate(features[half]), np.concatenate(labels[half]))
        for half in range(FOLDS)
    ]
    weights, biases = zip(*fitted, strict=True)
    return LearnedReranker(np.stack(weights), np.array(biases), fold)


def _regression(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return weights (7,) and bias over features as they are."""
    if labels.all() or not labels.any():
        labelled = (
            "no text that answers another query" if labels.all() else "no positive among them"
        )
        raise InputError(
            f"expected positives and others among what is retrieved, to learn a reranker from, "
            f"found {labelled}; give more rows, or a folder or none as `reranker`"
        )
    features = features.astype(np.float64)
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread < _CONSTANT] = 1.0
    model = LogisticRegression(max_iter=1_000).fit((features - mean) / spread, labels)
    weights = model.coef_[0] / spread
    return weights, float(model.intercept_[0] - weights @ mean)


def number_of(seed: int, key: str) -> int:
    """Return a 64-bit number that a seed and a text decide, whatever else is there."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:8], "big")


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return probabilities; of no logit infinite, however large."""
    return np.exp(-np.logaddexp(0, -logits))


def require_reranker(folder: Path) -> None:
    """Refuse a reranker that is no model folder, before anything is loaded.

    Raises:
        MissingError: If there is no such folder.
        InputError: If it has no config.json.
    """
    if not folder.is_dir():
        raise MissingError(
            f"expected `reranker` to be learned, none or a model folder, found nothing at {folder}"
        )
    if not (folder / "config.json").is_file():
        raise InputError(f"expected a cross-encoder's config.json in {folder}, found none")
