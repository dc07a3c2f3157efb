"""The checks that vectors must pass to count as the reference's, and the figures they judge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Self

import numpy as np

from anna_export.cosine import cosines, length_errors
from anna_export.encoder import Encoder
from anna_export.machine.hardware import hardware
from anna_export.machine.versions import installed
from anna_export.quantise.scheme import Thresholds
from anna_export.verify.parity_report import VectorParity, Verdict

# Rows are normalised in fp32, whatever the model computes in.
_LENGTH_TOLERANCE = 1e-4
# The largest difference between values of two unit vectors: what is not finite counts as that.
_OPPOSITE_DIFFERENCE = 2.0


@dataclass(frozen=True, slots=True)
class VectorPairs:
    """N texts as both encoders see them: token ids, and (N, D) vectors."""

    labels: list[str]
    expected_ids: Sequence[list[int]]
    ids: Sequence[list[int]]
    expected: np.ndarray
    vectors: np.ndarray
    batch1: np.ndarray | None = None  # the candidate's at batch size 1, where it was run so
    token: Callable[[int], str] = str  # how an id is written

    def in_lengths(self) -> Self:
        """Return the vectors as multiples of the reference's lengths, where these are not 1."""
        lengths = np.linalg.norm(self.expected.astype(np.float64), axis=1, keepdims=True)
        lengths = np.where(lengths > 0, lengths, 1)
        return replace(
            self,
            expected=self.expected / lengths,
            vectors=self.vectors / lengths,
            batch1=None if self.batch1 is None else self.batch1 / lengths,
        )

    @property
    def finite(self) -> np.ndarray:
        """(N,) bool: whether all of the candidate's vectors of a text are finite."""
        finite = np.isfinite(self.vectors).all(axis=1)
        return finite if self.batch1 is None else finite & np.isfinite(self.batch1).all(axis=1)


@dataclass(frozen=True, slots=True)
class Check:
    """A figure and its bound, which is the most it may be, or the least; None bounds nothing."""

    failure: str  # the reason it gives, of value, bound and where
    value: float
    bound: float | None
    where: str  # the text that the figure is of
    least: bool = False

    @property
    def reason(self) -> str | None:
        """Why it fails; None where it does not."""
        if self.bound is None:
            return None
        passed = self.value >= self.bound if self.least else self.value <= self.bound
        if passed:
            return None
        return self.failure.format(value=self.value, bound=self.bound) + f" ({self.where})"


def judge(
    pairs: VectorPairs,
    thresholds: Thresholds,
    reference: Encoder,
    candidate: Encoder,
    texts: int,
    prompts: list[str],
    method: str,
) -> VectorParity:
    """Hold vectors to the thresholds, and record what was compared with what.

    Differences and lengths are told in the reference's lengths.
    """
    length_tolerance = _LENGTH_TOLERANCE
    if not candidate.backend.spec.head.normalize:
        pairs = pairs.in_lengths()
        length_tolerance = max(_LENGTH_TOLERANCE, _error_of(thresholds))
    likeness = cosines(pairs.vectors, pairs.expected)
    worst = int(np.argmin(likeness))
    batch1_cosine = batch1_difference = None
    checks = [*_soundness(pairs, length_tolerance), *_closeness(likeness, thresholds, pairs.labels)]
    if pairs.batch1 is not None:
        batch1_checks = _batch1(pairs.vectors, pairs.batch1, thresholds, pairs.labels)
        batch1_cosine, batch1_difference = (check.value for check in batch1_checks)
        checks += batch1_checks
    reasons = [reason for check in checks if (reason := check.reason) is not None]
    return VectorParity(
        verdict=Verdict.FAIL if reasons else Verdict.PASS,
        reasons=reasons,
        texts=texts,
        prompts=prompts,
        longest_tokens=max(map(len, pairs.ids)),
        worst_cosine=float(likeness[worst]),
        worst_text=pairs.labels[worst],
        mean_cosine=float(likeness.mean()),
        max_abs=float(_differences(pairs.vectors, pairs.expected).max()),
        nonfinite=int((~pairs.finite).sum()),
        batch1_worst_cosine=batch1_cosine,
        batch1_max_abs=batch1_difference,
        thresholds=thresholds,
        method=method,
        reference=f"{reference.backend.name}: {reference.backend.compute_label}",
        candidate=f"{candidate.backend.name}: {candidate.backend.compute_label}",
        hardware=hardware(),
        versions=installed(),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _error_of(thresholds: Thresholds) -> float:
    """Return the length of the error, as a share of the vector's, that a threshold allows."""
    losses = [thresholds.max_loss or 0.0, 1 - (thresholds.min_cosine or 1.0)]
    return float(np.sqrt(2 * max(losses)))


def _soundness(pairs: VectorPairs, length_tolerance: float) -> list[Check]:
    """Token ids are the reference's; vectors are finite, and of the length they should have."""
    finite, labels = pairs.finite, pairs.labels
    same_ids = np.array(
        [list(row) == list(other) for row, other in zip(pairs.ids, pairs.expected_ids, strict=True)]
    )
    first = int(np.argmin(same_ids))
    errors = np.where(finite, length_errors(pairs.vectors), 0.0)
    return [
        Check(
            _literal(id_difference(pairs.expected_ids[first], pairs.ids[first], pairs.token)),
            int((~same_ids).sum()),
            0,
            labels[first],
        ),
        Check(
            "{value} vectors are not finite",
            int((~finite).sum()),
            0,
            f"the first: {labels[int(np.argmin(finite))]}",
        ),
        Check(
            "a vector's length is {value:.1e} from 1",
            errors.max(),
            length_tolerance,
            labels[int(np.argmax(errors))],
        ),
    ]


def _literal(text: str) -> str:
    """Return a text as a format that has no fields."""
    return text.replace("{", "{{").replace("}", "}}")


def id_difference(expected: Sequence[int], ids: Sequence[int], token: Callable[[int], str]) -> str:
    """Say how the reference's token ids of a text differ from an artifact's.

    Args:
        expected: The reference's.
        ids: The artifact's.
        token: How an id is written.
    """
    expected, ids = list(expected), list(ids)
    if ids[:-1] == expected != ids:
        cause = f"its tokenizer puts no {token(ids[-1])} behind a text, the artifact does"
    elif expected[:-1] == ids != expected:
        cause = f"its tokenizer puts {token(expected[-1])} behind a text, the artifact does not"
    elif ids[1:] == expected != ids:
        cause = f"its tokenizer puts no {token(ids[0])} in front of a text, the artifact does"
    elif expected[1:] == ids != expected:
        cause = f"its tokenizer puts {token(expected[0])} in front of a text, the artifact does not"
    else:
        pairs = zip_longest(map(token, expected), map(token, ids), fillvalue="nothing")
        index, (theirs, other) = next(
            (numbered for numbered in enumerate(pairs) if numbered[1][0] != numbered[1][1]),
            (0, ("", "")),
        )
        cause = f"token {index} is {theirs} there, {other} in the artifact"
    return f"token ids differ from the reference's: {cause}"


def _closeness(likeness: np.ndarray, thresholds: Thresholds, labels: list[str]) -> list[Check]:
    """(N,) cosines to the reference: the worst, and the mean loss."""
    worst = int(np.argmin(likeness))
    return [
        Check(
            "worst cosine {value:.7f} is below {bound}",
            likeness[worst],
            thresholds.min_cosine,
            labels[worst],
            least=True,
        ),
        Check(
            "mean loss (1 - cosine) {value:.2e} is above {bound}",
            1 - float(likeness.mean()),
            thresholds.max_loss,
            f"the worst cosine, {likeness[worst]:.4f}: {labels[worst]}",
        ),
    ]


def _batch1(
    vectors: np.ndarray, batch1: np.ndarray, thresholds: Thresholds, labels: list[str]
) -> list[Check]:
    """A text's vector in a padded batch and at batch size 1: cosine, then largest difference."""
    likeness, differences = cosines(vectors, batch1), _differences(vectors, batch1)
    return [
        Check(
            "batch size 1 against padded batches: worst cosine {value:.7f} is below {bound}",
            float(likeness.min()),
            thresholds.batch1_min_cosine,
            labels[int(np.argmin(likeness))],
            least=True,
        ),
        Check(
            "batch size 1 against padded batches: difference {value:.1e} is above {bound}",
            float(differences.max()),
            thresholds.batch1_max_abs,
            labels[int(np.argmax(differences))],
        ),
    ]


def _differences(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(N,) largest differences in float64."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(left.astype(np.float64) - right.astype(np.float64))
    return np.where(np.isfinite(difference), difference, _OPPOSITE_DIFFERENCE).max(axis=1)
