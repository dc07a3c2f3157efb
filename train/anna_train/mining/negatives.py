"""The negatives of rows, chosen from their pool, each with where it came from."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from anna_train.data.rows import Row, text_key
from anna_train.mining.margin import RULES, Decision
from anna_train.mining.rerank import number_of
from anna_train.mining.settings import MiningSettings, Sampling
from anna_train.mining.teacher import Judged

# of what is written of a score: rounding keeps the order of scores and thresholds
DIGITS: Final = 6
# what another teacher left in a row
_STALE: Final = ("temperature",)


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted over rows; parts add up."""

    rows: int = 0
    mined: int = 0  # negatives
    negatives: int = 0  # with those that were there before
    short: int = 0  # rows with fewer negatives than asked for
    candidates: int = 0
    by_margin: int = 0  # candidates dropped where that term decided
    by_relative: int = 0
    by_spread: int = 0
    bm25_first: int = 0  # rows whose positive is the first
    dense_first: int = 0
    reranker_first: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        mine, others = asdict(self), asdict(other)
        return Counts(**{name: mine[name] + others[name] for name in mine})


def choose(
    batches: Iterable[Judged], texts: Sequence[str], settings: MiningSettings
) -> tuple[Counts, list[Row]]:
    """Return judged rows with their negatives, and what was counted.

    Args:
        batches: The rows.
        texts: Their collection's.
        settings: How to choose.
    """
    counts, rows = Counts(), []
    for judged in batches:
        lowest = np.where(judged.pool.answer, judged.scores, np.inf).min(axis=1)
        decision = settings.margin.decide(lowest, judged.scores, judged.pool.candidate)
        counts += _counted(judged, decision)
        for number in range(len(judged.rows)):
            chosen = _chosen(judged, decision, number, settings)
            row = _mined(judged, decision, number, chosen, texts, settings)
            rows.append(row)
            counts += Counts(
                rows=1,
                mined=len(chosen),
                negatives=len(row.neg),
                short=len(row.neg) < settings.negatives,
            )
    return counts, rows


def _chosen(
    judged: Judged, decision: Decision, number: int, settings: MiningSettings
) -> np.ndarray:
    """Return the columns of a row's new negatives, the best score first."""
    columns = np.flatnonzero(decision.keep[number])
    order = np.argsort(-judged.scores[number, columns], kind="stable")
    ranked = columns[order][settings.from_rank - 1 :]
    wanted = max(settings.negatives - len(judged.questions[number].neg), 0)
    if settings.sampling is Sampling.TOP or len(ranked) <= wanted:
        return ranked[:wanted]
    key = text_key(judged.questions[number].query)
    draw = np.random.default_rng(number_of(settings.teacher.seed, key))
    return ranked[np.sort(draw.choice(len(ranked), wanted, replace=False))]


def _mined(
    judged: Judged,
    decision: Decision,
    number: int,
    chosen: np.ndarray,
    texts: Sequence[str],
    settings: MiningSettings,
) -> Row:
    row, question, pool = judged.rows[number], judged.questions[number], judged.pool
    text_indices = pool.texts[number]
    row_negatives = () if settings.replace else row.neg
    summary = {
        "positive_score": rounded(judged.scores[number, pool.answer[number]].min()),
        "sigma": rounded(decision.spread[number]),
        "candidates": int(pool.candidate[number].sum()),
        "kept": int(decision.keep[number].sum()),
    }
    origins = [_origin(judged, decision, number, column) for column in chosen]
    pos_scores = neg_scores = None
    if settings.teacher.reranker != "none":
        column_of = {text_index: column for column, text_index in enumerate(text_indices.tolist())}
        logits = judged.logits[number]
        negatives = [*(column_of[text_index] for text_index in question.neg), *chosen]
        pos_scores = tuple(rounded(logits[column_of[text_index]]) for text_index in question.pos)
        neg_scores = tuple(rounded(logits[column]) for column in negatives)
    other = {name: value for name, value in row.other.items() if name not in _STALE}
    return dataclasses.replace(
        row,
        neg=(*row_negatives, *(texts[text_index] for text_index in text_indices[chosen])),
        pos_scores=pos_scores,
        neg_scores=neg_scores,
        other=other | {"mined": _stored_origins(row, row_negatives) + origins, "mining": summary},
    )


def _stored_origins(row: Row, row_negatives: Sequence[str]) -> list[Any]:
    """Return what stands of kept negatives; nothing of those that were not mined."""
    origins = row.other.get("mined")
    return (
        origins
        if isinstance(origins, list) and len(origins) == len(row_negatives)
        else [None] * len(row_negatives)
    )


def _origin(judged: Judged, decision: Decision, number: int, column: int) -> dict[str, Any]:
    pool = judged.pool
    return {
        "bm25_rank": int(pool.bm25_rank[number, column]) or None,
        "dense_rank": int(pool.dense_rank[number, column]) or None,
        "score": rounded(judged.scores[number, column]),
        "logit": rounded(judged.logits[number, column]),
        "threshold": rounded(decision.threshold[number]),
        "rule": str(RULES[decision.rule[number]]),
    }


def _counted(judged: Judged, decision: Decision) -> Counts:
    pool = judged.pool
    dropped = (pool.candidate & ~decision.keep).sum(axis=1)
    by_rule = [int(dropped[decision.rule == rule].sum()) for rule in range(len(RULES))]
    best_other = np.where(pool.candidate, judged.scores, -np.inf).max(axis=1)
    # one that no retriever found is no answer that anybody would have seen
    best_answer = np.where(pool.answer & pool.retrieved, judged.scores, -np.inf).max(axis=1)
    return Counts(
        candidates=int(pool.candidate.sum()),
        by_margin=by_rule[0],
        by_relative=by_rule[1],
        by_spread=by_rule[2],
        bm25_first=int((pool.answer & (pool.bm25_rank == 1)).any(axis=1).sum()),
        dense_first=int((pool.answer & (pool.dense_rank == 1)).any(axis=1).sum()),
        reranker_first=int((best_answer > best_other).sum()),
    )


def rounded(value: float) -> float:
    """Return a score as it is written."""
    return round(float(value), DIGITS)
