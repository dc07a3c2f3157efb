"""Soft labels: one temperature a file, logits that can be got back, and scoring twice is once."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anna_train.cli import run
from anna_train.mining import parts
from anna_train.mining.mine import mine
from anna_train.mining.score import ScoreReport, score
from anna_train.mining.settings import ScoreSettings, TeacherSettings
from anna_train.mining.soften import find_temperature, mean_entropy, padded
from anna_train.mining.teacher import Teacher
from scipy.special import softmax
from scipy.stats import entropy

from demo.corpus import Pair

WriteRows = Callable[..., Path]
Rows = list[dict[str, Any]]


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def scored(rows: Path, settings: ScoreSettings | None = None) -> tuple[ScoreReport, Rows]:
    report = score(rows, rows.with_name("scored.jsonl"), settings, overwrite=True)
    return report, read(report.out)


def logits(scale: float, shift: float = 0.0) -> Rows:
    """Rows of two to six texts with a teacher's logits of about this spread."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(40):
        scores = (shift + scale * draw.normal(size=2 + number % 5)).round(6).tolist()
        rows.append(
            {
                "query": f"query {number}",
                "pos": ["answer"],
                "neg": [f"text {index}" for index in range(len(scores) - 1)],
                "pos_scores": scores[:1],
                "neg_scores": scores[1:],
                "source": "kept",
            }
        )
    return rows


def expected_entropy(rows: Rows) -> float:
    shares = []
    for row in rows:
        if row["neg"]:
            labels = softmax([*row["pos_scores"], *row["neg_scores"]])
            shares.append(entropy(labels) / np.log(len(labels)))
    return float(np.mean(shares))


@pytest.mark.parametrize("temperature", [0.01, 1.0, 40.0])
def test_mean_entropy_is_that_of_each_row_s_softmax(temperature: float) -> None:
    rows = [[3.0, 1.0], [0.5, 0.2, -7.0, 0.5], [-900.0, 900.0, 0.0]]
    shares = [entropy(softmax(np.array(row) / temperature)) / np.log(len(row)) for row in rows]
    assert mean_entropy(padded(rows), temperature) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize(("scale", "end"), [(30.0, 0.2), (0.05, 0.6)])
def test_a_temperature_brings_the_entropy_to_the_nearer_end(
    scale: float, end: float, write: WriteRows
) -> None:
    report, scored_rows = scored(write(logits(scale, shift=95)))
    assert (report.temperature > 1) == (scale > 1)
    assert expected_entropy(scored_rows) == pytest.approx(report.entropy_after, abs=1e-6)
    assert report.entropy_after == pytest.approx(end, abs=1e-3)
    assert report.entropy_before == pytest.approx(expected_entropy(logits(scale, 95)), abs=1e-6)


def test_an_entropy_inside_keeps_the_temperature_at_one(write: WriteRows) -> None:
    rows = logits(4.0)
    assert 0.2 < expected_entropy(rows) < 0.6
    report, scored_rows = scored(write(rows))
    assert report.temperature == 1 and report.entropy_before == report.entropy_after
    assert [row["neg_scores"] for row in scored_rows] == [row["neg_scores"] for row in rows]
    assert all(row["temperature"] == 1 for row in scored_rows)


@pytest.mark.parametrize("scale", [30.0, 4.0, 0.05])
def test_scores_times_temperature_are_the_logits(scale: float, write: WriteRows) -> None:
    rows = logits(scale, shift=95)
    for before, after in zip(rows, scored(write(rows))[1], strict=True):
        back = np.array([*after["pos_scores"], *after["neg_scores"]]) * after["temperature"]
        assert back == pytest.approx([*before["pos_scores"], *before["neg_scores"]], rel=1e-7)
        assert after["source"] == "kept"


@pytest.mark.parametrize("scale", [30.0, 4.0, 0.05])
def test_scoring_what_is_scored_changes_no_byte(scale: float, write: WriteRows) -> None:
    first, _ = scored(write(logits(scale, shift=95)))
    report = score(first.out, first.out.with_name("again.jsonl"))
    assert report.out.read_bytes() == first.out.read_bytes()
    assert report.reused == 40
    assert report.entropy_before == pytest.approx(first.entropy_before, abs=1e-6)


def test_a_temperature_that_is_right_but_for_rounding_is_kept(write: WriteRows) -> None:
    first, scored_rows = scored(write(logits(30.0)))
    near = float(np.float64(first.temperature) * 1.0004)
    rows = write([row | {"temperature": near} for row in scored_rows], "near.jsonl")
    # its logits are 1.0004 times as large, and so is what is right for them
    exact = score(rows, rows.with_name("exact.jsonl"))
    assert exact.temperature == near and exact.out.read_text() == rows.read_text()


def test_other_bounds_are_taken_from_the_logits_and_not_from_softened_scores(
    write: WriteRows,
) -> None:
    rows = write(logits(30.0))
    high = ScoreSettings(entropy_low=0.7, entropy_high=0.8)
    straight = scored(rows, high)[1]
    softened = rows.with_name("softened.jsonl")
    score(rows, softened)
    for row, other in zip(straight, scored(softened, high)[1], strict=True):
        assert other["temperature"] == pytest.approx(row["temperature"], rel=1e-4)
        assert other["neg_scores"] == pytest.approx(row["neg_scores"], rel=1e-3)


def test_what_mine_scored_is_used_as_it_is(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mined = rows.with_name("mined.jsonl")
    mine(rows, mined)

    def refuse(*_: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(Teacher, "judge", refuse)
    report, scored_rows = scored(mined)
    for before, after in zip(read(mined), scored_rows, strict=True):
        if before["neg"]:
            back = np.array(after["neg_scores"]) * report.temperature
            assert back == pytest.approx(before["neg_scores"], rel=1e-7)
            assert after["mined"] == before["mined"]
    assert report.reused == sum(bool(row["neg"]) for row in scored_rows)
    assert report.without_negatives == len(scored_rows) - report.reused


def unscored(pairs: list[Pair]) -> Rows:
    """Rows with two negatives, every tenth with none."""
    return [
        {
            "query": pair.query,
            "pos": [pair.document],
            "neg": [] if number % 10 == 0 else [pairs[number - 1].document, f"Text {number}."],
        }
        for number, pair in enumerate(pairs)
    ]


def test_rows_without_negatives_are_kept_unlabelled_and_counted(
    pairs: list[Pair], write: WriteRows
) -> None:
    report, scored_rows = scored(write(unscored(pairs)))
    assert report.rows == len(scored_rows) == 90 and report.without_negatives == 9
    for number, row in enumerate(scored_rows):
        assert ("pos_scores" in row) == ("temperature" in row) == (number % 10 != 0)
    assert 0.2 - 1e-3 <= expected_entropy(scored_rows) <= 0.6 + 1e-3


def test_a_teacher_scores_the_answer_above_another_s_in_most_rows(
    pairs: list[Pair], write: WriteRows
) -> None:
    report, scored_rows = scored(write(unscored(pairs)))
    above = [max(row["neg_scores"]) > min(row["pos_scores"]) for row in scored_rows if row["neg"]]
    assert report.outranked == pytest.approx(np.mean(above))
    # by chance one of two negatives is above in 2 rows of 3
    assert report.outranked < 0.45


def test_cosines_are_the_logits_without_a_reranker(pairs: list[Pair], write: WriteRows) -> None:
    settings = ScoreSettings(TeacherSettings(reranker="none"))
    report, scored_rows = scored(write(unscored(pairs)), settings)
    values = [
        value * report.temperature for row in scored_rows for value in row.get("neg_scores", [])
    ]
    assert max(map(abs, values)) <= 1 + 1e-6


def test_weights_add_up_standardised_components(pairs: list[Pair], write: WriteRows) -> None:
    rows = write(unscored(pairs))

    def component(*weights: float) -> np.ndarray:
        settings = ScoreSettings(TeacherSettings(reranker="learned"), weights=weights)  # type: ignore[arg-type]
        report, scored_rows = scored(rows, settings)
        values = [
            v for row in scored_rows if row["neg"] for v in row["pos_scores"] + row["neg_scores"]
        ]
        return np.array(values) * report.temperature

    alone = [component(0, 1, 0), component(0, 0, 1)]
    for values in alone:
        assert (values.mean(), values.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1))
    np.testing.assert_allclose(component(0, 2, 1), 2 * alone[0] + alone[1], atol=1e-5)
    assert np.corrcoef(alone[0], alone[1])[0, 1] < 0.95


def test_again_scores_what_is_scored(pairs: list[Pair], write: WriteRows) -> None:
    wrong = [
        row | ({"pos_scores": [-5.0], "neg_scores": [5.0, 4.0]} if row["neg"] else {})
        for row in unscored(pairs)
    ]
    path = write(wrong)
    assert scored(path)[0].outranked == 1
    report, scored_rows = scored(path, ScoreSettings(again=True))
    assert report.reused == 0 and report.outranked < 0.45
    assert scored_rows == scored(write(unscored(pairs), "fresh.jsonl"))[1]


def test_an_interrupted_run_goes_on(
    pairs: list[Pair], write: WriteRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 30)
    rows = write(unscored(pairs))
    uninterrupted, judge, calls = scored(rows)[0].out.read_bytes(), Teacher.judge, []

    def stopped(self: Teacher, part: Sequence[Any]) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge(self, part)

    out = rows.with_name("out.jsonl")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Teacher, "judge", stopped)
        score(rows, out)
    assert not out.exists()
    report = score(rows, out)
    assert report.resumed == 60 and out.read_bytes() == uninterrupted
    assert not [name for name in os.listdir(out.parent) if name.startswith(".")]


def test_equal_scores_everywhere_are_refused_and_flat_ones_are_not() -> None:
    assert find_temperature(padded([[0.0, 1e-4], [0.0, 2e-4]]), 0.2, 0.6) < 1e-3
    with pytest.raises(ValueError, match="found so many equal ones"):
        find_temperature(padded([[1.0, 1.0], [2.0, 2.0]]), 0.2, 0.6)


def test_the_command_prints_a_summary_or_one_object(
    write: WriteRows, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(logits(30.0))
    out = str(rows.with_name("out.jsonl"))
    assert run(["score", str(rows), "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "temperature" in printed and "0.200 after" in printed
    assert run(["score", str(rows), "--out", out, "--overwrite", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["out"] == out and value["reused"] == 40
