"""Scores as functions of how often each unit was drawn: what a bootstrap needs of a metric.

A unit is a query, a text, a pair or a document. Every estimator holds one model's values on one
subset of a task, and gives mteb's score of them, and the scores of resamples, in which each unit
counts as often as it was drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from scipy.sparse import csr_array


class Estimator(Protocol):
    """A score, and what it would be of other draws of the same units."""

    @property
    def units(self) -> int:
        """N."""
        ...

    @property
    def draws(self) -> int:
        """How often the metric itself drew from the units; 1 for a metric that does not."""
        ...

    def freedom(self, groups: int) -> float:
        """Degrees of freedom of its spread over resamples of so many groups."""
        ...

    def resampled(self, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Return (B,) float64 scores.

        Args:
            weights: (B, N), how often each unit counts.
            draws: (B, draws), how often each of the metric's own draws does.
        """
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One model on one subset of a task.

    Args:
        estimator: Its score, and what it is made of: N units.
        groups: (N,) int64 from 0; units of one group share a text.
    """

    estimator: Estimator
    groups: np.ndarray


def score(estimator: Estimator) -> float:
    """Return the score in which every unit counts once: mteb's."""
    once = np.ones((1, estimator.units)), np.ones((1, estimator.draws))
    return float(estimator.resampled(*once)[0])


@dataclass(frozen=True, slots=True)
class MeanOf:
    """The mean of a value of every unit.

    So are nDCG, mean average precision and recall over queries; accuracy over texts, each with the
    share of experiments that got it right; and a correlation over documents.
    """

    values: np.ndarray  # (N,) float64

    @property
    def units(self) -> int:
        """N."""
        return len(self.values)

    @property
    def draws(self) -> int:
        """None of its own."""
        return 1

    def freedom(self, groups: int) -> float:
        """As of any mean."""
        return groups - 1

    def resampled(self, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Return (B,) weighted means."""
        return (weights @ self.values) / weights.sum(axis=1)


@dataclass(frozen=True, slots=True)
class Spearman:
    """The rank correlation of gold scores and similarities of pairs."""

    gold: np.ndarray  # (N,) float64
    similarity: np.ndarray  # (N,) float64

    @property
    def units(self) -> int:
        """N."""
        return len(self.gold)

    @property
    def draws(self) -> int:
        """None of its own."""
        return 1

    def freedom(self, groups: int) -> float:
        """No correction: the ties in a resample spread it more than another sample would."""
        return math.inf

    def resampled(self, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Return (B,) Pearson correlations of weighted midranks.

        With whole weights it is the correlation of a sample that holds each pair as often.
        """
        left, right = _midranks(self.gold, weights), _midranks(self.similarity, weights)
        total = weights.sum(axis=1)
        left -= (np.einsum("bn,bn->b", weights, left) / total)[:, None]
        right -= (np.einsum("bn,bn->b", weights, right) / total)[:, None]
        covariance, left_variance, right_variance = (
            np.einsum("bn,bn,bn->b", weights, first, second)
            for first, second in ((left, right), (left, left), (right, right))
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return covariance / np.sqrt(left_variance * right_variance)


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """The best average precision that one of several similarities of pairs gives.

    Source: mteb's max_ap; each is scikit-learn's average_precision_score.
    """

    labels: np.ndarray  # (N,) 0 or 1
    scores: np.ndarray  # (K, N) float64, more for pairs that are more alike

    @property
    def units(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def draws(self) -> int:
        """None of its own."""
        return 1

    def freedom(self, groups: int) -> float:
        """No correction: the ties in a resample spread it more than another sample would."""
        return math.inf

    def resampled(self, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Return (B,) average precisions."""
        return np.max([self._of(scores, weights) for scores in self.scores], axis=0)

    def _of(self, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        order, starts = _runs(-scores)
        ends = np.append(starts[1:], len(order)) - 1
        drawn = weights[:, order].astype(np.float64)
        retrieved = drawn.cumsum(axis=1)[:, ends]
        hits = (drawn * (self.labels[order] == 1)).cumsum(axis=1)[:, ends]
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(retrieved > 0, hits / retrieved, 0.0)
            gained = np.diff(hits, axis=1, prepend=0.0)
            return (gained * precision).sum(axis=1) / hits[:, -1]


@dataclass(frozen=True, slots=True)
class VMeasure:
    """The mean V-measure of clusterings, each of a draw from the texts.

    Made by `of_levels`.
    """

    texts: int
    clusterings: tuple["_Clustering", ...]

    @classmethod
    def of_levels(
        cls, levels: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], texts: int
    ) -> Self:
        """Take what mteb drew and clustered.

        Args:
            levels: For each level of a hierarchy: (N,) gold classes as whole numbers; (R, size)
                indices of the texts in R draws; (R, size) the clusters they were put in.
            texts: N.
        """
        return cls(
            texts,
            tuple(
                _Clustering.of_draw(gold, drawn, clusters)
                for gold, indices, assigned in levels
                for drawn, clusters in zip(indices, assigned, strict=True)
            ),
        )

    @property
    def units(self) -> int:
        """N."""
        return self.texts

    @property
    def draws(self) -> int:
        """R draws of each level."""
        return len(self.clusterings)

    def freedom(self, groups: int) -> float:
        """As of a mean over the texts of a class: entropies of a few vary more than it shows."""
        classes = max(clustering.classes.shape[0] for clustering in self.clusterings)
        return groups // classes - 1

    def resampled(self, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Return (B,) means over the draws of V-measures in which each text counts as drawn."""
        measures = np.stack(
            [clustering.v_measure(weights) for clustering in self.clusterings], axis=1
        )
        return (draws * measures).sum(axis=1) / draws.sum(axis=1)


@dataclass(frozen=True, slots=True)
class _Clustering:
    """One draw: how many positions of it each text takes in each cell of its contingency table."""

    cells: csr_array  # (M cells, N texts)
    classes: csr_array  # (classes, M), which cells are of a class
    clusters: csr_array  # (clusters, M), which are of a cluster

    @classmethod
    def of_draw(cls, gold: np.ndarray, drawn: np.ndarray, assigned: np.ndarray) -> Self:
        pairs, cell = np.unique(np.stack([gold[drawn], assigned]), axis=1, return_inverse=True)
        cells = csr_array(
            (np.ones(len(drawn)), (cell.reshape(-1), drawn)), shape=(pairs.shape[1], len(gold))
        )
        return cls(cells, *(_members(row) for row in pairs))

    def v_measure(self, weights: np.ndarray) -> np.ndarray:
        """Return (B,) V-measures, beta 1.

        Source: Rosenberg and Hirschberg 2007, as scikit-learn's v_measure_score.
        """
        joint = np.asarray(self.cells @ weights.T, dtype=np.float64)  # (M, B)
        total = joint.sum(axis=0)
        of_classes = _entropy(self.classes @ joint, total)
        of_clusters = _entropy(self.clusters @ joint, total)
        mutual = of_classes + of_clusters - _entropy(joint, total)
        # an entropy of zero is a perfect one
        both = of_classes + of_clusters
        return np.where(both > 0, 2 * mutual / np.where(both > 0, both, 1.0), 1.0)


def _members(names: np.ndarray) -> csr_array:
    """(distinct, M): one where a cell has that name."""
    _, codes = np.unique(names, return_inverse=True)
    codes = codes.reshape(-1)
    return csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))))


def _entropy(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """(B,) entropies in nats of (M, B) counts."""
    shares = np.asarray(counts) / total
    return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=0)


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort: (N,) indices in ascending order, and where each run of equal values starts."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    return order, starts


def _midranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B, N) mean ranks of samples that hold each value as often as its weight says."""
    order, starts = _runs(values)
    runs = np.add.reduceat(weights[:, order].astype(np.float64), starts, axis=1)
    middle = runs.cumsum(axis=1) - (runs - 1) / 2
    run_of = np.empty(len(values), dtype=np.int64)
    run_of[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(values))))
    return middle[:, run_of]
