"""What a user decides about mining and scoring."""

from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from anna_export.errors import InputError
from anna_train.mining.collection import folder_sha256
from anna_train.mining.dense import require_encoder
from anna_train.mining.margin import AdaptiveMargin
from anna_train.mining.rerank import require_reranker

# Another version of one of these may rank, split or fit otherwise.
_LIBRARIES: Final = ("anna-export", "bm25s", "faiss-cpu", "numpy", "scikit-learn", "scipy")
LOGIT_ALONE: Final = (1.0, 0.0, 0.0)
_MODEL_LIBRARIES: Final = ("sentence-transformers", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """What ranks and scores.

    Args:
        encoder: Folder of an artifact or a sentence-transformers model; None: LSA.
        query_prompt: Name of the encoder's prompt for queries; None: its own choice, "": none.
        reranker: Folder of a CrossEncoder; "learned": a logistic regression over lexical and
            dense features; "none": the dense cosine.
        depth: How many texts each retriever finds for a query.
        seed: Start of everything drawn by chance.
        cache: Folder that vectors are kept in for later runs; None: for this one only.

    Raises:
        AnnaError: If a number is out of range, or a folder not what it should be.
    """

    encoder: Path | None = None
    query_prompt: str | None = None
    reranker: Path | Literal["learned", "none"] = "learned"
    depth: int = 100
    seed: int = 0
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise InputError(f"expected `depth` of 1 or more, found {self.depth}")
        if self.seed < 0:
            raise InputError(f"expected `seed` of 0 or more, found {self.seed}")
        if self.encoder is not None:
            require_encoder(self.encoder)
        elif self.query_prompt is not None:
            raise InputError("expected `encoder` beside `query_prompt`, found none")
        if isinstance(self.reranker, Path):
            require_reranker(self.reranker)

    def state(self) -> dict[str, Any]:
        """Return all that decides a score, as JSON values; folders by their content."""
        folders = isinstance(self.reranker, Path) or self.encoder is not None
        libraries = _LIBRARIES + (_MODEL_LIBRARIES if folders else ())
        return {
            "encoder": None if self.encoder is None else folder_sha256(self.encoder),
            "query_prompt": self.query_prompt,
            "reranker": folder_sha256(self.reranker)
            if isinstance(self.reranker, Path)
            else self.reranker,
            "depth": self.depth,
            "seed": self.seed,
            "libraries": {name: metadata.version(name) for name in libraries},
        }


class Sampling(StrEnum):
    """Which of the candidates below the margin are taken."""

    TOP = "top"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class MiningSettings:
    """How negatives are mined.

    Args:
        teacher: What ranks and scores.
        margin: What may be a negative.
        negatives: How many a row has at last, those it keeps included.
        from_rank: Rank, from 1 and among those that may be negatives, of the first that is taken.
        sampling: The best from there on, or any of them by chance.
        corpus: A file of more texts to mine from.
        replace: Drop the negatives that rows have.

    Raises:
        InputError: If a number is out of range.
    """

    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    margin: AdaptiveMargin = field(default_factory=AdaptiveMargin)
    negatives: int = 7
    from_rank: int = 1
    sampling: Sampling = Sampling.TOP
    corpus: Path | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        for name, value in (("negatives", self.negatives), ("from_rank", self.from_rank)):
            if value < 1:
                raise InputError(f"expected `{name}` of 1 or more, found {value}")


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """How soft labels are made.

    Args:
        teacher: What scores rows that are not scored yet.
        entropy_low: Least mean entropy of the labels, as a share of that of equal ones.
        entropy_high: The most.
        weights: Of the reranker's logit, the dense cosine and BM25, each standardised over the
            file; (1, 0, 0) is the logit as it is.
        again: Score what is scored already, too.

    Raises:
        InputError: If a number is out of range.
    """

    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    entropy_low: float = 0.2
    entropy_high: float = 0.6
    weights: tuple[float, float, float] = LOGIT_ALONE
    again: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.entropy_low <= self.entropy_high < 1:
            raise InputError(
                "expected 0 < `entropy_low` <= `entropy_high` < 1, found "
                f"{self.entropy_low} and {self.entropy_high}"
            )
        if not all(0 <= weight < float("inf") for weight in self.weights) or not any(self.weights):
            raise InputError(
                "expected `weights` of 0 or more, one of them above, found "
                f"{','.join(map(str, self.weights))}"
            )
