"""The corpus: the same pairs in the same order, none twice, none on both sides of the split."""

from pathlib import Path

import pytest

from demo.corpus import Corpus, Pair, collect_pairs, pairs_of_source, source_files

QUERY = "Return the number of things."
DOCUMENT = "Things are counted once each, whatever their order and whatever their names are."


def source(*docstrings: str) -> str:
    return "\n\n".join(
        f'def function_{index}():\n    """{text}"""' for index, text in enumerate(docstrings)
    )


def docstring(number: int) -> str:
    return f"{QUERY[:-1]} {number}.\n\n    {DOCUMENT[:-1]} {number}."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = [docstring(number) for number in range(400)]
    (tmp_path / "b.py").write_text(source(*texts[:200]))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.py").write_text(source(*texts[100:]))
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_z.py").write_text(source(docstring(1000)))
    return tmp_path


def test_first_paragraph_is_the_query_and_the_rest_the_document() -> None:
    text = source("Return the number\n    of things.\n\n    " + DOCUMENT.replace(" ", "\n    ", 3))
    assert list(pairs_of_source(text.encode())) == [Pair(QUERY, DOCUMENT)]


@pytest.mark.parametrize("text", [QUERY, f"{QUERY}\n\n    Short.", f"Short.\n\n    {DOCUMENT}"])
def test_a_docstring_without_two_long_enough_parts_gives_no_pair(text: str) -> None:
    assert list(pairs_of_source(source(text).encode())) == []


def test_files_are_read_in_one_order_without_tests(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in source_files([folder])]
    assert names == ["a/z.py", "b.py", "broken.py"]


def test_no_query_and_no_document_comes_twice(folder: Path) -> None:
    pairs = collect_pairs(source_files([folder]), 10_000)
    assert len(pairs) == 400
    assert len({pair.query for pair in pairs}) == len({pair.document for pair in pairs}) == 400


@pytest.mark.parametrize(
    "second", [f"{QUERY}\n\n    {DOCUMENT} Again.", f"Another summary.\n\n    {DOCUMENT}"]
)
def test_a_repeated_query_or_document_is_dropped(tmp_path: Path, second: str) -> None:
    # else the same text would be the right answer of one pair and a wrong one of the other
    (tmp_path / "a.py").write_text(source(f"{QUERY}\n\n    {DOCUMENT}", second))
    assert collect_pairs(source_files([tmp_path]), 10) == [Pair(QUERY, DOCUMENT)]


def test_no_more_pairs_are_taken_than_asked_for(folder: Path) -> None:
    assert len(collect_pairs(source_files([folder]), 7)) == 7


def test_split_is_disjoint_complete_and_by_content_alone(folder: Path) -> None:
    pairs = collect_pairs(source_files([folder]), 10_000)
    corpus, reversed_corpus = Corpus.split(pairs), Corpus.split(pairs[::-1])
    assert sorted(corpus, key=pairs.index) == pairs
    assert not set(corpus.train) & set(corpus.heldout)
    assert set(corpus.heldout) == set(reversed_corpus.heldout)
    # one in 16 of 400 is 25, give or take four standard deviations of 4.8
    assert 6 <= len(corpus.heldout) <= 44


def test_heldout_side_of_a_pair_never_moves() -> None:
    # fixed values: a change would move texts that published figures held out into training
    sides = [Pair(QUERY, f"{DOCUMENT} {number}").heldout for number in range(40)]
    assert [number for number, heldout in enumerate(sides) if heldout] == [6, 12, 27]
