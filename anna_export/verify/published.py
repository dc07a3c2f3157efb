"""Scores that others published, beside an artifact's: a check of sanity, never the baseline."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Final

_FILE: Final = Path(__file__).with_name("published.json")
ARTIFACT: Final = "this artifact"


@dataclass(frozen=True, slots=True)
class Standing:
    """One model's means, scores from 0 to 1; None where they are not published."""

    model: str
    mean_over_tasks: float
    mean_over_types: float
    by_type: dict[str, float]
    borda_rank: int | None  # among the models with a score of every task


@dataclass(frozen=True, slots=True)
class Summary:
    """The artifact's means, and those of published models over the same tasks."""

    standings: list[Standing]  # the artifact's first
    tasks: int  # how many of the artifact's tasks the others are compared on
    note: str


def summary(scores: Mapping[str, float], types: Mapping[str, str], *, local: bool) -> Summary:
    """Set an artifact's scores beside published ones.

    Args:
        scores: The artifact's, by task, from 0 to 1.
        types: Each task's type.
        local: Whether some task's data is local, and may not be the leaderboard's.
    """
    file = _published()
    shared = [name for name in scores if name in file["tasks"]]
    published = {
        model: {name: file["tasks"][name][column] / 100 for name in shared}
        for column, model in enumerate(file["models"])
    }
    ranks = borda_ranks({ARTIFACT: {name: scores[name] for name in shared}, **published})
    standings = [_standing(ARTIFACT, scores, types, ranks[ARTIFACT] if shared else None)]
    if shared:
        standings += [
            _standing(model, results, types, ranks[model]) for model, results in published.items()
        ]
    if set(scores) == set(file["tasks"]):
        standings += [
            _means(model, values, file["means_of"])
            for model, values in file["means"].items()
            if model not in published
        ]
    return Summary(standings, len(shared), _note(len(shared), len(scores), local, file["source"]))


def borda_ranks(scores: Mapping[str, Mapping[str, float]]) -> dict[str, int]:
    """Rank models that have a score of every task.

    On each task a model gets a point for every model it beats, and half a point for a tie; models
    of equal points share the better rank.

    Source: mteb's Rank (Borda).
    """
    points = {
        model: sum(
            (results[task] > other[task]) + (results[task] == other[task]) / 2
            for name, other in scores.items()
            if name != model
            for task in results
        )
        for model, results in scores.items()
    }
    return {
        model: 1 + sum(other > mine for other in points.values()) for model, mine in points.items()
    }


def _standing(
    model: str, scores: Mapping[str, float], types: Mapping[str, str], rank: int | None
) -> Standing:
    by_type: dict[str, list[float]] = {}
    for name, score in scores.items():
        by_type.setdefault(types[name], []).append(score)
    means = {kind: fmean(values) for kind, values in sorted(by_type.items())}
    return Standing(model, fmean(scores.values()), fmean(means.values()), means, rank)


def _means(model: str, values: Sequence[float], names: Sequence[str]) -> Standing:
    means = {name: value / 100 for name, value in zip(names, values, strict=True)}
    return Standing(model, means.pop("tasks"), means.pop("types"), means, None)


def _note(shared: int, tasks: int, local: bool, source: str) -> str:
    if not shared:
        return "none of these tasks has published scores"
    note = f"published scores of {shared} of these {tasks} tasks; {source}"
    if local:
        note += "; local data may be a part of the leaderboard's: not comparable with it"
    return note


@cache
def _published() -> dict[str, Any]:
    return dict(json.loads(_FILE.read_text(encoding="utf-8")))
