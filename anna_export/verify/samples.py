"""What an mteb score is made of: the values of its queries, pairs, texts or draws.

mteb's result files hold means. Its predictions, with the task's data, hold what the means are of;
each kind of task has a reader here that turns them into an estimator, whose score must be mteb's.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pytrec_eval
from scipy.stats import spearmanr

from anna_export.errors import InputError, UnsupportedError
from anna_export.verify.estimators import (
    AveragePrecision,
    MeanOf,
    Sample,
    Spearman,
    VMeasure,
)
from anna_export.verify.resampling import groups_of, groups_of_pairs

# mteb rounds the means of retrieval to five decimals.
_TOLERANCE: Final = 1.1e-5
_TREC: Final = {
    "ndcg": "ndcg_cut",
    "map": "map_cut",
    "recall": "recall",
    "precision": "P",
    "hit_rate": "success",
}
_RANKED: Final = rf"(max_over_subqueries_)?({'|'.join(_TREC)})_at_(\d+)"
_DISTANCES: Final = frozenset({"manhattan_distances", "euclidean_distances"})


def read_samples(task: Any, fresh: Any, predictions: Mapping[str, Any]) -> dict[str, Sample]:
    """Return a sample of each subset.

    Args:
        task: The mteb task, evaluated, its data loaded.
        fresh: The same task, not evaluated: its random generator is where the other's was.
        predictions: What mteb predicts of it: by subset and split.
    """
    (split,) = task.eval_splits
    _, read = _KINDS[task.metadata.type]
    return {
        subset: read(_Subset(task, fresh, _data(task, subset), split, predicted[split]))
        for subset in task.hf_subsets
        if (predicted := predictions[subset])
    }


def require_supported(task: Any) -> None:
    """Refuse a task whose score cannot be taken apart here.

    Raises:
        UnsupportedError: Naming the supported types, or the scores of its type.
    """
    kind, metric = task.metadata.type, task.metadata.main_score
    if (hindrance := _hindrance(task)) is not None:
        raise UnsupportedError(
            f"expected a task whose score can be taken apart, found {task.metadata.name}, "
            f"{hindrance}; leave it out"
        )
    if kind not in _KINDS:
        raise UnsupportedError(
            f"expected a task of type {', '.join(_KINDS)}, found {task.metadata.name} of type "
            f"{kind}; leave it out"
        )
    metrics, _ = _KINDS[kind]
    if not re.fullmatch(metrics, metric):
        raise UnsupportedError(
            f"expected {metrics} as the main score of {task.metadata.name}, found "
            f"{metric}; leave it out"
        )


def _hindrance(task: Any) -> str | None:
    """Say why a task of a known type is not of the form that its type is read as, if it is not."""
    if task.is_aggregate:
        return "which is several; name them one by one"
    if getattr(task, "is_cross_validation", False):
        return "which is cross-validated"
    if task.metadata.type == "Clustering" and not hasattr(task, "max_documents_per_cluster"):
        return f"of mteb's older kind of clustering; {task.metadata.name}.v2 is not"
    return None


def require_same_score(task: str, scored: float, mtebs: float) -> None:
    """Refuse a score that is not what mteb made of the same predictions: a bug, here or there."""
    if not abs(scored - mtebs) <= _TOLERANCE:
        raise AssertionError(f"{task}: mteb's score is {mtebs}, of its predictions {scored}")


@dataclass(frozen=True, slots=True)
class _Subset:
    task: Any
    fresh: Any
    data: Any  # by split
    split: str
    predicted: Any

    @property
    def test(self) -> Any:
        return self.data[self.split]


def _data(task: Any, subset: str) -> Any:
    return task.dataset[subset] if subset in task.dataset else task.dataset


def _classification(of: _Subset) -> Sample:
    gold = np.asarray(of.test[of.task.label_column_name])
    right = np.asarray(of.predicted) == gold
    texts = of.test[of.task.input_column_name]
    return Sample(MeanOf(right.mean(axis=0)), groups_of(list(texts)))


def _clustering(of: _Subset) -> Sample:
    task, rng = of.task, of.fresh.rng_state
    rows = list(range(len(of.test)))
    share, most = task.max_fraction_of_documents_to_embed, task.max_document_to_embed
    if share is not None:
        most = int(share * len(rows))
    if most is not None:
        rows = rng.sample(range(len(rows)), k=min(len(rows), most))
    picked = of.test.select(rows)
    labels = [
        label if isinstance(label, list) else [label] for label in picked[task.label_column_name]
    ]
    levels = []
    for level, assigned in enumerate(of.predicted.values()):
        named = [label[level] if level < len(label) else -1 for label in labels]
        labelled = np.flatnonzero([name != -1 for name in named])
        _, codes = np.unique(np.asarray(named)[labelled], return_inverse=True)
        gold = np.full(len(rows), -1, dtype=np.int64)
        gold[labelled] = codes
        draws = [
            rng.choices(range(len(labelled)), k=task.max_documents_per_cluster) for _ in assigned
        ]
        levels.append((gold, labelled[np.asarray(draws)], np.asarray(assigned)))
    texts = list(picked[task.input_column_name])
    return Sample(VMeasure.of_levels(levels, len(rows)), groups_of(texts))


def _pairs(of: _Subset) -> Sample:
    # older data sets hold all pairs in one row
    test = of.test if len(of.test) > 1 else of.test[0]
    scores = [
        -np.asarray(values, dtype=np.float64) if name in _DISTANCES else np.asarray(values, float)
        for name, values in of.predicted.items()
    ]
    task = of.task
    return Sample(
        AveragePrecision(np.asarray(test[task.label_column_name]), np.stack(scores)),
        groups_of_pairs(list(test[task.input1_column_name]), list(test[task.input2_column_name])),
    )


def _retrieval(of: _Subset) -> Sample:
    match = re.fullmatch(_RANKED, of.task.metadata.main_score)
    assert match is not None, "require_supported lets no other pass"
    over_subqueries, name, cutoff = match.groups()
    qrels, results = of.test["relevant_docs"], dict(of.predicted)
    if over_subqueries:
        qrels, results = _merged(qrels, results)
    elif of.task.ignore_identical_ids:
        results = {
            query: {document: score for document, score in scores.items() if document != query}
            for query, scores in results.items()
        }
    if of.task.skip_first_result and not over_subqueries:
        results = {
            query: dict(sorted(scores.items(), key=lambda item: item[1], reverse=True)[1:])
            for query, scores in results.items()
        }
    measure = _TREC[name]
    scores = pytrec_eval.RelevanceEvaluator(qrels, {f"{measure}.{cutoff}"}).evaluate(results)
    queries = list(scores)
    values = np.array([scores[query][f"{measure}_{cutoff}"] for query in queries])
    texts = dict(zip(of.test["queries"]["id"], of.test["queries"]["text"], strict=True))
    texts_of: list[Hashable] = [texts.get(query, query) for query in queries]
    return Sample(MeanOf(values), groups_of(texts_of))


def _merged(
    qrels: Mapping[str, Mapping[str, int]], results: Mapping[str, Mapping[str, float]]
) -> tuple[dict[str, Mapping[str, int]], dict[str, dict[str, float]]]:
    """Join the parts of a query, `id_0`, `id_1` and so on: a document has the best of its scores.

    Source: mteb's max_over_subqueries, MindSmallReranking.
    """
    relevant: dict[str, Mapping[str, int]] = {}
    merged: dict[str, dict[str, float]] = {}
    for query in qrels:
        joined = query.rpartition("_")[0]
        relevant[joined] = qrels[query]
        best = merged.setdefault(joined, {})
        for document, score in results[query].items():
            best[document] = max(score, best.get(document, score))
    return relevant, merged


def _sts(of: _Subset) -> Sample:
    left, right = of.task.column_names
    return Sample(
        Spearman(np.asarray(of.test["score"], float), np.asarray(of.predicted["cosine_scores"])),
        groups_of_pairs(list(of.test[left]), list(of.test[right])),
    )


def _summarisation(of: _Subset) -> Sample:
    documents: Sequence[tuple[list[float], list[float]]] = list(
        zip(of.predicted["human_scores"], of.predicted["cosine_scores"], strict=True)
    )
    values = [spearmanr(gold, cosines).statistic for gold, cosines in documents]
    # mteb leaves documents out, and does not say which: they are taken to be of different texts
    return Sample(MeanOf(np.array(values)), np.arange(len(values)))


# Of each type of task: the main scores that can be taken apart, a pattern, and how.
_KINDS: Final[dict[str, tuple[str, Callable[[_Subset], Sample]]]] = {
    "Classification": ("accuracy", _classification),
    "Clustering": ("v_measure", _clustering),
    "PairClassification": ("max_ap", _pairs),
    "Reranking": (_RANKED, _retrieval),
    "Retrieval": (_RANKED, _retrieval),
    "STS": ("cosine_spearman", _sts),
    "Summarization": ("cosine_spearman", _summarisation),
}


def require_aligned(task: str, *samples: Sample) -> None:
    """Refuse samples of other units, which cannot be compared in pairs."""
    if len({len(sample.groups) for sample in samples}) > 1:
        raise InputError(
            f"expected the same units of {task} from every model, found "
            f"{', '.join(str(len(sample.groups)) for sample in samples)}; a model whose vectors "
            "are all alike has documents left out"
        )
