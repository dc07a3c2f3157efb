"""Give rows soft labels: a teacher's logits, over one temperature for the whole file."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from anna_export.errors import InputError
from anna_export.files.atomic import staged_file
from anna_export.files.hashing import file_sha256
from anna_export.files.work_folder import work_folder
from anna_export.progress import Stage, no_stage
from anna_train.data.rows import Row, RowFile
from anna_train.mining.collection import collect
from anna_train.mining.parts import PART_ROWS, line_of, parts, require_output
from anna_train.mining.settings import LOGIT_ALONE, ScoreSettings
from anna_train.mining.soften import find_temperature, mean_entropy, padded
from anna_train.mining.teacher import Teacher, open_teacher, repeatable

TEMPERATURE: Final = "temperature"
_DIGITS: Final = 9  # significant, of a score that is written
# an earlier run's temperature this near to the right one is kept, and its scores with it
_SAME: Final = 1e-3

# of a row's positives, then its negatives
_Scores = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """What was scored.

    Args:
        out: The file of rows.
        rows: How many.
        without_negatives: Those of them that have no label.
        reused: Rows whose scores stood in them already.
        temperature: What the logits were divided by.
        entropy_before: Mean entropy of the labels at temperature 1, a share of equal labels'.
        entropy_after: The same at that temperature.
        outranked: The share of labelled rows where a negative scores above a positive.
        resumed: Rows that an earlier run had scored.
        restarted: Whether an earlier run with other settings was dropped.
    """

    out: Path
    rows: int
    without_negatives: int
    reused: int
    temperature: float
    entropy_before: float
    entropy_after: float
    outranked: float
    resumed: int
    restarted: bool


def score(
    rows: Path,
    out: Path,
    settings: ScoreSettings | None = None,
    *,
    overwrite: bool = False,
    stage: Stage = no_stage,
) -> ScoreReport:
    """Write rows with scores whose softmax is their soft label.

    The scores are logits / temperature, and the temperature stands in each row: their product is
    the logit. Rows without negatives are kept, and get no scores where they have none.

    Args:
        rows: The file of rows.
        out: The file to write.
        settings: How; the defaults where not given.
        overwrite: Replace `out` if it exists.
        stage: Shows what takes long.

    Raises:
        AnnaError: If an input cannot be used, or `out` cannot be written.
    """
    settings = settings or ScoreSettings()
    require_output(out, rows, overwrite=overwrite)
    source = RowFile(rows)
    if _are_scored(source, settings):
        raw = [_raw(row, source, number) for number, row in enumerate(source)]
        earlier = {row.other.get(TEMPERATURE) for row in source if row.neg}
        return _write(source, raw, earlier, out, settings)
    with (
        work_folder(out, _state(rows, settings)) as work,
        repeatable(settings.teacher),
        open_teacher(
            settings.teacher, source, collect(source, negatives=True), work, stage
        ) as teacher,
    ):
        components: list[tuple[np.ndarray, np.ndarray]] = []
        resumed = 0
        with stage("score", "rows") as progress:
            for start, end in parts(len(source)):
                make = partial(_part, teacher, source, start, end)
                text, resumed_part = work.text(f"{start:012d}.jsonl", make)
                components += [_components(line) for line in text.splitlines()]
                resumed += (end - start) * resumed_part
                if progress is not None:
                    progress(end, len(source))
        fused = _fuse(components, settings.weights)
        report = _write(source, fused, set(), out, settings)
        return dataclasses.replace(report, resumed=resumed, restarted=work.restarted)


def _are_scored(source: RowFile, settings: ScoreSettings) -> bool:
    """Say whether the scores that rows have are to be used."""
    labelled = scored = 0
    for row in source:
        labelled += bool(row.neg)
        scored += bool(row.neg) and row.scored
    if not labelled:
        raise InputError(
            f"expected rows with negatives, found none in {source.path}; anna-train mine finds some"
        )
    if settings.again or not scored:
        return False
    if scored < labelled:
        raise InputError(
            f"expected scores in all rows or in none, found them in {scored:,} of {labelled:,} in "
            f"{source.path}; `again` scores all"
        )
    if settings.weights != LOGIT_ALONE:
        raise InputError(
            f"expected `again` beside `weights`, found {scored:,} rows in {source.path} that are "
            "scored already"
        )
    return True


def _temperature(row: Row, source: RowFile, number: int) -> float:
    value = row.other.get(TEMPERATURE, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(
            f"expected a number above 0 in {TEMPERATURE}, found {value!r}, in line "
            f"{source.line(number)} of {source.path}"
        )
    return float(value)


def _raw(row: Row, source: RowFile, number: int) -> _Scores:
    """Return the logits that a row's scores were made of; none where it has no scores."""
    temperature = _temperature(row, source, number)
    positives, negatives = row.pos_scores or (), row.neg_scores or ()
    return [value * temperature for value in positives], [
        value * temperature for value in negatives
    ]


def _state(rows: Path, settings: ScoreSettings) -> dict[str, Any]:
    # what is done with the logits is done anew in every run
    return {
        "verb": "score",
        "rows": file_sha256(rows),
        "teacher": settings.teacher.state(),
        "part_rows": PART_ROWS,
    }


def _part(teacher: Teacher, source: RowFile, start: int, end: int) -> str:
    """Return each row's (logit, cosine, BM25) of its positives and of its negatives, one a line."""
    return "".join(
        json.dumps({"pos": components[0], "neg": components[1]}) + "\n"
        for components in _judged(teacher, source[start:end])
    )


def _judged(teacher: Teacher, rows: Sequence[Row]) -> Iterator[tuple[list[Any], list[Any]]]:
    for judged in teacher.judge(rows):
        pool = judged.pool
        values = np.stack([judged.logits, pool.dense, pool.bm25], axis=2)
        for number, question in enumerate(judged.questions):
            column = {
                text_index: index for index, text_index in enumerate(pool.texts[number].tolist())
            }
            positives, negatives = (
                [values[number, column[text_index]].tolist() for text_index in text_indices]
                for text_indices in (question.pos, question.neg)
            )
            yield (positives, negatives) if negatives else ([], [])


def _components(line: str) -> tuple[np.ndarray, np.ndarray]:
    components = json.loads(line)
    return tuple(
        np.array(components[side], dtype=np.float64).reshape(-1, 3) for side in ("pos", "neg")
    )  # type: ignore[return-value]


def _fuse(
    components: Sequence[tuple[np.ndarray, np.ndarray]], weights: tuple[float, float, float]
) -> list[_Scores]:
    if weights == LOGIT_ALONE:
        return [(pos[:, 0].tolist(), neg[:, 0].tolist()) for pos, neg in components]
    every = np.concatenate([side for pair in components for side in pair])
    spread = every.std(axis=0)
    # a component that is the same everywhere says nothing
    scale = np.divide(weights, spread, out=np.zeros(3), where=spread > 0)
    mean = every.mean(axis=0)
    return [
        (((pos - mean) @ scale).tolist(), ((neg - mean) @ scale).tolist())
        for pos, neg in components
    ]


def _write(
    source: RowFile,
    raw: Sequence[_Scores],
    earlier: set[float | None],
    out: Path,
    settings: ScoreSettings,
) -> ScoreReport:
    labelled = [(pos, neg) for pos, neg in raw if neg]
    scores = padded([pos + neg for pos, neg in labelled])
    temperature = find_temperature(scores, settings.entropy_low, settings.entropy_high)
    (earlier_temperature,) = earlier if len(earlier) == 1 else (None,)
    unchanged = earlier_temperature is not None and math.isclose(
        earlier_temperature, temperature, rel_tol=_SAME
    )
    temperature = (
        earlier_temperature if earlier_temperature is not None and unchanged else temperature
    )
    with staged_file(out) as aside, aside.open("w", encoding="utf-8") as file:
        for row, (pos, neg) in zip(source, raw, strict=True):
            scored = row if unchanged else _scored(row, pos, neg, temperature)
            file.write(line_of(scored) + "\n")
    return ScoreReport(
        out=out,
        rows=len(source),
        without_negatives=len(source) - len(labelled),
        reused=len(labelled) if earlier else 0,
        temperature=temperature,
        entropy_before=mean_entropy(scores, 1.0),
        entropy_after=mean_entropy(scores, temperature),
        outranked=sum(max(neg) > min(pos) for pos, neg in labelled) / len(labelled),
        resumed=0,
        restarted=False,
    )


def _scored(row: Row, pos: list[float], neg: list[float], temperature: float) -> Row:
    def written(values: list[float]) -> tuple[float, ...] | None:
        return tuple(float(f"{value / temperature:.{_DIGITS}g}") for value in values) or None

    other = {name: value for name, value in row.other.items() if name != TEMPERATURE}
    return dataclasses.replace(
        row,
        pos_scores=written(pos),
        neg_scores=written(neg),
        other=other | ({TEMPERATURE: temperature} if pos else {}),
    )
