"""How well the base and the tuned model do, beside TF-IDF."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from anna_export.backends import open_encoder
from demo.task_scores import Encode, Fit, banking, retrieved, sts, tf_idf

TF_IDF: Final = "TF-IDF"
# Of each task, in this order.
METRICS: Final = {
    "docstrings": "nDCG@10",
    "STS-B": "Spearman",
    "Banking77": "5-NN accuracy",
}

Scores = dict[str, dict[str, float]]


def measure(
    artifacts: Mapping[str, Path],
    held_out: tuple[list[str], list[str]],
    task_data: Path | None,
) -> Scores:
    """Return each task's score by name of what embeds: TF-IDF, then the artifacts.

    Args:
        artifacts: Their folders, by name; they embed with their default prompt.
        held_out: Queries, and the document of each.
        task_data: A folder of MTEB test data; None: docstrings alone.
    """
    fits: dict[str, Fit] = {TF_IDF: tf_idf}
    for name, folder in artifacts.items():
        fits[name] = partial(_fit, folder)
    return {name: _of(fit, held_out, task_data) for name, fit in fits.items()}


def _of(
    fit: Fit, held_out: tuple[list[str], list[str]], task_data: Path | None
) -> dict[str, float]:
    scores = {"docstrings": retrieved(*held_out, fit)}
    if task_data is not None:
        scores |= {"STS-B": sts(task_data, fit), "Banking77": banking(task_data, fit)}
    return scores


def _fit(folder: Path, _: list[str]) -> Encode:
    return open_encoder(folder).encode
