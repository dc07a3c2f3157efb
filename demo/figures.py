"""How well the demonstration's models do, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass

from anna_train.run.retrieval import Retrieval


@dataclass(frozen=True, slots=True)
class Scores:
    """One task's score by every model, each in 0..1; None: not measured."""

    metric: str
    tf_idf: float
    base: float
    base_few_shot: float | None
    tuned: float
    tuned_few_shot: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """How well the models do, and how far the adapter moves vectors.

    Documents never carry a prompt: theirs is empty.
    """

    train_pairs: int  # of the base
    evaluated_pairs: int
    base: Retrieval  # queries without a prompt
    base_prompted: Retrieval
    tuned: Retrieval  # queries with their prompt, without examples
    document_cosine: float  # mean, base against tuned vector of the same document
    query_cosine: float  # the same of prompted queries
    tasks: Mapping[str, Scores]
