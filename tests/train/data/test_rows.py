"""Rows: what a line may hold, what it may not, and where that is said."""

import json
from pathlib import Path
from typing import Any

import pytest
from anna_train.data.rows import Row, RowError, RowFile, TaskType, parse_row, write_rows
from hypothesis import given
from hypothesis import strategies as st

from anna_export.errors import InputError, MissingError

GOOD: dict[str, Any] = {"query": "q", "pos": ["p"], "neg": ["n"]}
SCORED: dict[str, Any] = {**GOOD, "pos_scores": [1.5], "neg_scores": [-0.5]}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scores = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    pos = draw(st.lists(texts, min_size=1, max_size=3))
    neg = draw(st.lists(texts, max_size=3))
    scored = draw(st.booleans())
    names = st.text("abc_", min_size=1, max_size=4)
    return Row(
        query=draw(texts),
        pos=tuple(pos),
        neg=tuple(neg),
        pos_scores=tuple(draw(scores) for _ in pos) if scored else None,
        neg_scores=tuple(draw(scores) for _ in neg) if scored else None,
        prompt=draw(st.none() | texts),
        type=draw(st.sampled_from(TaskType)),
        other=draw(st.dictionaries(names, st.none() | texts | st.integers(), max_size=3)),
    )


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@given(row=rows())
def test_a_row_is_the_same_once_written_and_read(
    row: Row, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, [row, row])
    assert list(RowFile(path)) == [row, row]


def test_query_and_pos_are_enough(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"query": "q", "pos": ["p"]})
    row = RowFile(path)[0]
    assert row == Row("q", ("p",)) and not row.scored and row.type is TaskType.RETRIEVAL


def test_nulls_are_as_fields_left_out() -> None:
    names = ("neg", "pos_scores", "neg_scores", "prompt", "type")
    value = {"query": "q", "pos": ["p"], **dict.fromkeys(names)}
    assert Row.of_json(value) == Row("q", ("p",))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("normal", TaskType.RETRIEVAL),
        ("only_1neg", TaskType.RETRIEVAL),
        ("symmetric_class", TaskType.CLASSIFICATION),
        ("symmetric_clustering", TaskType.CLUSTERING),
        ("symmetric_sts", TaskType.STS),
        *((str(kind), kind) for kind in TaskType),
    ],
)
def test_types_have_our_names_and_flagembeddings(name: str, kind: TaskType) -> None:
    assert Row.of_json({**GOOD, "type": name}).type is kind


def test_unknown_fields_are_kept(tmp_path: Path) -> None:
    other = {"id": 7, "source": {"name": "nq", "tags": ["a", None]}}
    row = RowFile(write(tmp_path / "in.jsonl", {**SCORED, **other}))[0]
    write_rows(tmp_path / "out.jsonl", [row])
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        **SCORED,
        "type": "retrieval",
        **other,
    }


@pytest.mark.parametrize(
    ("value", "field", "problem"),
    [
        ([], "", "expected an object, found list"),
        ("text", "", "expected an object, found str"),
        ({}, "query", "expected a field query, found no fields"),
        ({"pos": ["p"]}, "query", "expected a field query, found pos"),
        ({"query": "q"}, "pos", "expected a field pos, found query"),
        ({**GOOD, "query": 3}, "query", "expected a text in query, found 3"),
        ({**GOOD, "query": None}, "query", "expected a text in query, found null"),
        ({**GOOD, "query": "\ud800"}, "query", "expected valid Unicode in query"),
        ({**GOOD, "pos": []}, "pos", "expected one text or more in pos, found none"),
        ({**GOOD, "pos": "p" * 99}, "pos", "expected a list of texts in pos, found 'ppp"),
        ({**GOOD, "pos": ["p", 1]}, "pos[1]", "expected a text in pos[1], found 1"),
        ({**GOOD, "neg": ""}, "neg", "expected a list of texts in neg, found ''"),
        ({**GOOD, "neg": [["n"]]}, "neg[0]", "expected a text in neg[0], found list"),
        ({**SCORED, "pos_scores": 1}, "pos_scores", "expected a list of numbers in pos_scores"),
        ({**SCORED, "neg_scores": [True]}, "neg_scores[0]", "expected a number in neg_scores[0]"),
        ({**SCORED, "neg_scores": ["1"]}, "neg_scores[0]", "found '1'"),
        ({**SCORED, "pos_scores": [float("nan")]}, "pos_scores[0]", "found nan"),
        ({**SCORED, "pos_scores": [float("inf")]}, "pos_scores[0]", "found inf"),
        ({**SCORED, "pos_scores": [10**400]}, "pos_scores[0]", "expected a finite number"),
        ({**SCORED, "neg_scores": [1, 2]}, "neg_scores", "expected 1 numbers in neg_scores"),
        ({**SCORED, "pos_scores": []}, "pos_scores", "expected 1 numbers in pos_scores"),
        ({**GOOD, "pos_scores": [1]}, "neg_scores", "expected neg_scores beside pos_scores"),
        ({**GOOD, "neg_scores": [1]}, "pos_scores", "expected pos_scores beside neg_scores"),
        ({**GOOD, "prompt": ["p"]}, "prompt", "expected a text in prompt, found list"),
        ({**GOOD, "type": "rerank"}, "type", "expected a type of retrieval"),
        ({**GOOD, "type": 1}, "type", "found 1"),
    ],
)
def test_a_malformed_row_is_one_line_with_its_place(
    value: object, field: str, problem: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, value)
    with pytest.raises(RowError) as caught:
        list(RowFile(path))
    message = str(caught.value)
    assert problem in message and message.endswith(f", in line 2 of {path}")
    assert caught.value.field == field
    assert "\n" not in message and len(message.removesuffix(str(path))) < 250


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"query": ', "expected JSON, found expecting value at character 11"),
        (b'{"query": "\xff", "pos": ["p"]}', "expected UTF-8, found other bytes"),
        (b"[" * 100_000, "expected a row, found JSON of too many levels"),
        (b'{"query": ' + b"9" * 5000 + b"}", "expected numbers of at most 4,300 digits"),
    ],
    ids=["cut off", "latin 1", "deep", "long number"],
)
def test_what_is_no_json_is_one_line_with_its_place(line: bytes, problem: str) -> None:
    with pytest.raises(RowError, match=r"in line 7 of rows\.jsonl$") as caught:
        parse_row(line, Path("rows.jsonl"), 7)
    assert str(caught.value).startswith(problem) and caught.value.field == ""


def test_blank_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    line = json.dumps(GOOD)
    path.write_text(f"\n  \n{line}\n\t\n{line}\n\n")
    rows = RowFile(path)
    assert len(rows) == 2 and [rows.line(0), rows.line(1)] == [3, 5]
    assert rows[-1] == rows[0] == Row("q", ("p",), ("n",))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_rows_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected training rows in"):
        RowFile(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="expected a file of training rows"):
        RowFile(tmp_path / "rows.jsonl")


def test_windows_line_ends_mark_and_missing_last_end_are_no_text(tmp_path: Path) -> None:
    line = json.dumps({"query": "é\u2028", "pos": ["p"]}, ensure_ascii=False).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line)
    assert list(RowFile(path)) == [Row("é\u2028", ("p",))] * 2


def test_rows_are_read_by_place_and_by_slice(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *({**GOOD, "query": str(n)} for n in range(5)))
    rows = RowFile(path)
    assert [row.query for row in rows[1:4:2]] == ["1", "3"]
    with pytest.raises(IndexError):
        rows[5]
