"""Other trainers' data: each form becomes the rows it means, and rows become it again."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from anna_train.cli import run
from anna_train.data.convert import Conversion, Converted, convert
from anna_train.data.readers import Format
from anna_train.data.rows import Row, RowFile, TaskType, write_rows
from hypothesis import given
from hypothesis import strategies as st

from anna_export.errors import DamagedError, ExistsError, InputError, UnsupportedError

Fields = dict[str, Any]
TEVATRON: Fields = {
    "query_id": "7",
    "query": "q",
    "positive_passages": [{"docid": "a", "title": "Title", "text": "text"}],
    "negative_passages": [{"docid": "b", "title": "", "text": "n"}, {"docid": "c", "text": " m"}],
}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
distinct = st.lists(texts, min_size=1, max_size=4, unique=True)


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def delimited(path: Path, *records: Fields, delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(records)
    return path


def tabs(path: Path, *records: Fields) -> Path:
    return delimited(path, *records, delimiter="\t")


def parquet(path: Path, *records: Fields) -> Path:
    pq.write_table(pa.Table.from_pylist(list(records)), path)
    return path


def rows_of(path: Path, **options: Any) -> list[Row]:
    out = path.with_name("out.jsonl")
    convert(Conversion(path, out, **options), overwrite=True)
    return list(RowFile(out))


def test_tevatron_passages_are_title_and_text(tmp_path: Path) -> None:
    assert rows_of(jsonl(tmp_path / "in", TEVATRON)) == [
        Row(
            "q",
            ("Title text",),
            ("n", " m"),
            other={"query_id": "7", "pos_ids": ["a"], "neg_ids": ["b", "c"]},
        )
    ]


@pytest.mark.parametrize("write", [jsonl, delimited, tabs, parquet])
def test_records_that_share_the_anchor_are_one_row(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    triplets = [("a", "p", "n"), ("b, c", "p", "n"), ("a", "p", "m\n"), ("a", "o", "n")]
    path = write(
        tmp_path / "in",
        *(dict(zip(("anchor", "positive", "negative"), each, strict=True)) for each in triplets),
    )
    # in the order anchors first come, each text once
    assert rows_of(path) == [Row("a", ("p", "o"), ("n", "m\n")), Row("b, c", ("p",), ("n",))]


@pytest.mark.parametrize("write", [jsonl, delimited, parquet])
def test_numbered_negatives_are_in_the_order_of_their_numbers(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    negatives = {f"negative_{number}": f"n{number}" for number in (10, 2, 1)}
    record = {"query": "q", "answer": "p", **negatives, "negative_3": None}
    assert rows_of(write(tmp_path / "in", record)) == [Row("q", ("p",), ("n1", "n2", "n10"))]


def test_a_list_of_scores_is_a_teachers(tmp_path: Path) -> None:
    record = {"query": "q", "positive": "p", "negative_1": "n", "negative_2": "m"}
    more = {"query": "q", "positive": "p", "negative_1": "o", "score": [9, 4]}
    path = parquet(tmp_path / "in", {**record, "score": [3.5, 1.0, 2.0]}, more)
    assert rows_of(path) == [Row("q", ("p",), ("n", "m", "o"), (3.5,), (1.0, 2.0, 4.0))]


@pytest.mark.parametrize("write", [jsonl, delimited, parquet])
def test_scored_pairs_are_positives_from_the_asked_score_on(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = [("s", "t", 4.0), ("u", "v", 1.0), ("s", "w", 3.9), ("x", "y", 5.0)]
    names = ("sentence1", "sentence2", "score")
    path = write(tmp_path / "in", *(dict(zip(names, pair, strict=True)) for pair in pairs))
    done = convert(Conversion(path, tmp_path / "out", positive_score=4))
    assert list(RowFile(tmp_path / "out")) == [
        Row(
            "s",
            ("t",),
            ("w",),
            type=TaskType.STS,
            other={"pos_similarity": [4.0], "neg_similarity": [3.9]},
        ),
        Row("x", ("y",), type=TaskType.STS, other={"pos_similarity": [5.0], "neg_similarity": []}),
    ]
    assert done == Converted(
        Format.SENTENCE_TRANSFORMERS, records=4, rows=2, lines=2, without_positive=1
    )


def test_scored_pairs_without_a_limit_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in", {"sentence1": "a", "sentence2": "b", "score": 0.5})
    with pytest.raises(InputError, match="expected `positive_score` beside pairs with a score"):
        rows_of(path)
    with pytest.raises(InputError, match="give a lower `positive_score`"):
        rows_of(path, positive_score=0.6)


def test_labelled_pairs_are_not_of_type_sts(tmp_path: Path) -> None:
    pairs = [{"anchor": "a", "positive": text, "label": text == "p"} for text in "pn"]
    (row,) = rows_of(jsonl(tmp_path / "in", *pairs), positive_score=1)
    assert (row.pos, row.neg, row.type) == (("p",), ("n",), TaskType.RETRIEVAL)


def test_other_columns_prompt_and_type_are_kept(tmp_path: Path) -> None:
    record = {"anchor": "a", "positive": "p", "prompt": "i", "type": "symmetric_class", "id": 3}
    assert rows_of(jsonl(tmp_path / "in", record)) == [
        Row("a", ("p",), prompt="i", type=TaskType.CLASSIFICATION, other={"id": 3})
    ]


def test_an_anchor_under_another_prompt_is_another_row(tmp_path: Path) -> None:
    record = {"anchor": "a", "positive": "p"}
    path = jsonl(tmp_path / "in", record, {**record, "prompt": "i"}, {**record, "id": 3})
    assert rows_of(path) == [Row("a", ("p",)), Row("a", ("p",), prompt="i")]


def test_flagembedding_rows_get_our_names_of_types(tmp_path: Path) -> None:
    record = {"query": "q", "pos": ["p"], "neg": ["n"], "type": "only_1neg", "id": 3}
    assert rows_of(jsonl(tmp_path / "in", record)) == [Row("q", ("p",), ("n",), other={"id": 3})]


def test_long_cells_marks_and_quotes_of_csv_are_read(tmp_path: Path) -> None:
    long = 'x"y, ' * 40_000
    path = delimited(tmp_path / "in", {"anchor": "é", "positive": long})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert rows_of(path) == [Row("é", (long,))]


@given(
    st.lists(
        st.builds(
            Row,
            query=texts,
            pos=st.lists(texts, min_size=1, max_size=3).map(tuple),
            neg=st.lists(texts, max_size=3).map(tuple),
            prompt=st.none() | texts,
            type=st.sampled_from(TaskType),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_rows_are_the_same_through_tevatron(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    folder = tmp_path_factory.mktemp("tevatron")
    write_rows(folder / "rows", rows)
    convert(Conversion(folder / "rows", folder / "there", to=Format.TEVATRON))
    convert(Conversion(folder / "there", folder / "back"))
    back = list(RowFile(folder / "back"))
    names = ("query", "pos", "neg", "prompt", "type")
    assert [[getattr(row, name) for name in names] for row in back] == [
        [getattr(row, name) for name in names] for row in rows
    ]
    # ids were given on the way there, and stay
    convert(Conversion(folder / "back", folder / "again", to=Format.TEVATRON))
    assert (folder / "again").read_text() == (folder / "there").read_text()


def test_tevatrons_own_ids_come_back(tmp_path: Path) -> None:
    convert(Conversion(jsonl(tmp_path / "in", {**TEVATRON, "query_id": 70}), tmp_path / "rows"))
    convert(Conversion(tmp_path / "rows", tmp_path / "out", to=Format.TEVATRON))
    back = json.loads((tmp_path / "out").read_text())
    assert back["query_id"] == 70
    assert back["positive_passages"] == [{"docid": "a", "title": "", "text": "Title text"}]
    assert [passage["docid"] for passage in back["negative_passages"]] == ["b", "c"]


def test_scores_and_other_fields_stand_beside_tevatrons(tmp_path: Path) -> None:
    row = Row("q", ("p",), ("n",), (2.0,), (1.0,), other={"id": 3})
    write_rows(tmp_path / "rows", [row])
    convert(Conversion(tmp_path / "rows", tmp_path / "there", to=Format.TEVATRON))
    (back,) = rows_of(tmp_path / "there")
    assert (back.pos_scores, back.neg_scores, back.other["id"]) == ((2.0,), (1.0,), 3)


@given(st.dictionaries(texts, st.tuples(distinct, distinct), min_size=1, max_size=4))
def test_rows_are_the_same_through_triplets(
    tmp_path_factory: pytest.TempPathFactory, sides: dict[str, tuple[list[str], list[str]]]
) -> None:
    rows = [Row(query, tuple(pos), tuple(neg)) for query, (pos, neg) in sides.items()]
    folder = tmp_path_factory.mktemp("triplets")
    write_rows(folder / "rows", rows)
    to = Format.SENTENCE_TRANSFORMERS
    done = convert(Conversion(folder / "rows", folder / "there", to=to))
    assert done.lines == sum(max(len(row.pos), len(row.neg)) for row in rows)
    convert(Conversion(folder / "there", folder / "back"))
    assert list(RowFile(folder / "back")) == rows


def test_scored_pairs_are_the_same_through_rows(tmp_path: Path) -> None:
    pairs = [{"sentence1": "s", "sentence2": text, "score": 5.0 - n} for n, text in enumerate("tu")]
    path = jsonl(tmp_path / "in", *pairs)
    to = Format.SENTENCE_TRANSFORMERS
    done = convert(Conversion(path, tmp_path / "out", to=to, positive_score=5))
    assert (tmp_path / "out").read_text() == path.read_text() and not done.left_out


def test_similarities_of_other_texts_make_no_pairs(tmp_path: Path) -> None:
    # as after mining has added negatives
    row = Row("s", ("t",), ("u", "v"), other={"pos_similarity": [5.0], "neg_similarity": [1.0]})
    write_rows(tmp_path / "rows", [row])
    to = Format.SENTENCE_TRANSFORMERS
    done = convert(Conversion(tmp_path / "rows", tmp_path / "out", to=to))
    assert done.left_out == {"pos_similarity": 1, "neg_similarity": 1}
    lines = (tmp_path / "out").read_text().splitlines()
    assert [list(json.loads(line)) for line in lines] == [["anchor", "positive", "negative"]] * 2


def test_what_triplets_have_no_column_for_is_counted(tmp_path: Path) -> None:
    scored = Row("q", ("p",), ("n",), (2.0,), (1.0,), "prompt", TaskType.STS, {"id": 3})
    write_rows(tmp_path / "rows", [scored, Row("r", ("p",), ("n",))])
    to = Format.SENTENCE_TRANSFORMERS
    done = convert(Conversion(tmp_path / "rows", tmp_path / "out", to=to))
    assert done.left_out == {"scores": 1, "prompt": 1, "type": 1, "id": 1}
    assert set(json.loads((tmp_path / "out").read_text().splitlines()[0])) == {
        "anchor",
        "positive",
        "negative",
    }


def test_rows_with_and_without_negatives_are_not_mixed_in_triplets(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", [Row("q", ("p",), ("n",)), Row("r", ("p",))])
    with pytest.raises(InputError, match=r"expected the first row's columns .* query 'r'"):
        rows_of(tmp_path / "rows", to=Format.SENTENCE_TRANSFORMERS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows"]


PAIR: Fields = {"anchor": "a", "positive": "p"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**PAIR, "positive": 3}, "expected a text in positive, found int, in line 2 of"),
        ({**PAIR, "anchor": None}, "expected a text in anchor, found null, in line 2 of"),
        ({**PAIR, "anchor": "\ud800"}, "expected valid Unicode in anchor, .* in line 2 of"),
        ({"anchor": "a"}, "expected an anchor and a positive, found anchor, in line 2 of"),
        ({**PAIR, "score": [1, 2]}, "expected 1 numbers in score, .* found 2, in line 2 of"),
        ({**PAIR, "score": "high"}, "expected a number in score, found 'high', in line 2 of"),
        ({**PAIR, "negative": "n", "score": 1}, "expected 2 numbers in score, .* in line 2 of"),
        ({**PAIR, "type": "x"}, "expected a type of .* in line 2 of"),
        ({**PAIR, "anchor": "other", "score": [1]}, None),
        ({**PAIR, "score": [1]}, "expected numbers with all of an anchor's records or none"),
        (3, "expected an object, found int, in line 2 of"),
    ],
)
def test_a_malformed_record_is_named(record: Any, message: str | None, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in", PAIR, record)
    if message is None:
        assert len(rows_of(path)) == 2
        return
    with pytest.raises(InputError, match=message) as caught:
        rows_of(path)
    assert "\n" not in str(caught.value)
    assert [left.name for left in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": None}, "expected a text in query, found null, in line 1 of"),
        ({"positive_passages": []}, "expected one passage or more in positive_passages"),
        ({"positive_passages": "p"}, "expected a list of passages in positive_passages, found str"),
        ({"negative_passages": ["n"]}, r"in negative_passages\[0\], in line 1 of"),
        ({"negative_passages": [{"docid": "1"}]}, r"in negative_passages\[0\], in line 1 of"),
        ({"negative_passages": [{"text": "n", "title": 3}]}, "expected a text as the title"),
    ],
)
def test_a_malformed_tevatron_record_is_named(
    changes: Fields, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        rows_of(jsonl(tmp_path / "in", TEVATRON | changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected records in .*, found none"),
        (b"anchor,positive\n", "expected records in .*, found none"),
        (b'{"anchor": "a", "positive"', "expected JSON, found .* in line 1 of"),
        (b'{"a": ' + b"[" * 99_999, "expected JSON, found too many levels of it"),
        (b'{"a": "\xff"}', "expected UTF-8, found other bytes, in line 1 of"),
        (b"anchor,positive\na\n", "expected 2 cells as in the first line, found fewer, in row 1"),
        (b"anchor,positive\na,b\na,b,c\n", "expected 2 cells .*, found more, in row 2"),
        (b'anchor,positive\n"a', "expected CSV, found .* in row 1 of"),
    ],
    ids=range(8),
)
def test_an_unreadable_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(content)
    with pytest.raises(InputError, match=message):
        rows_of(tmp_path / "in")


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "in", PAIR)
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(DamagedError, match="expected Parquet, found"):
        rows_of(path)


def test_parquet_columns_that_json_has_no_form_of_are_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "in", {**PAIR, "raw": b"bytes"})
    with pytest.raises(InputError, match=r"found: .*bytes.* leave that column out"):
        rows_of(path)


@pytest.mark.parametrize(
    "content", [json.dumps({"text": "t", "id": 3}), "one,two\n1,2\n", "some words\nmore\n"]
)
def test_fields_of_nobody_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(
        UnsupportedError, match=r"found (text, id|one, two|some words), in"
    ) as caught:
        rows_of(tmp_path / "rows.jsonl")
    assert all(str(name) in str(caught.value) for name in Format)


def test_one_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(json.dumps([PAIR]))
    with pytest.raises(UnsupportedError, match="expected one JSON object a line, found an array"):
        rows_of(tmp_path / "in")


def test_an_output_is_replaced_only_if_asked_and_never_the_source(tmp_path: Path) -> None:
    path, out = jsonl(tmp_path / "in", PAIR), tmp_path / "out"
    out.write_text("old")
    with pytest.raises(ExistsError):
        convert(Conversion(path, out))
    assert out.read_text() == "old"
    convert(Conversion(path, out), overwrite=True)
    assert len(RowFile(out)) == 1
    with pytest.raises(InputError, match="expected `out` beside"):
        convert(Conversion(path, path), overwrite=True)


@pytest.mark.parametrize("write", [jsonl, delimited, parquet])
def test_progress_ends_with_all_bytes(write: Callable[..., Path], tmp_path: Path) -> None:
    path, reports = write(tmp_path / "in", PAIR, PAIR), []
    convert(
        Conversion(path, tmp_path / "out"),
        progress=lambda done, total: reports.append((done, total)),
    )
    size = path.stat().st_size
    assert reports[-1] == (size, size) and len(reports) == 2


def test_command_says_what_was_read_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = jsonl(tmp_path / "in", TEVATRON), tmp_path / "out"
    assert run(["convert", str(path), "--out", str(out)]) == 0
    assert capsys.readouterr().out == (
        f"read     1 records of tevatron\nwritten  1 lines of 1 rows to {out}\n"
    )
    command = ["convert", str(out), "--out", str(tmp_path / "there"), "--json"]
    assert run([*command, "--to", "sentence-transformers"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["rows"], printed["lines"], printed["from"]) == (1, 2, "flagembedding")
    assert printed["left_out"] == {"query_id": 1, "pos_ids": 1, "neg_ids": 1}


def test_commands_formats_are_all_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "in", "--out", "out", "--from", "none"]) == 2
    message = capsys.readouterr().err
    assert all(str(name) in message for name in Format)
