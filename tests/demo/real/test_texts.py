"""What the real model is tuned on shares nothing with what it is tested on."""

import pytest

from demo.corpus import Pair, source_folders
from demo.real import texts
from demo.real.texts import Texts, sentence_rows, summary_rows
from demo.tasks import Docstring

PROSE = "A lock is held until the block ends. It is released even where an error is raised."


@pytest.fixture(scope="module")
def stdlib() -> Texts:
    with pytest.MonkeyPatch.context() as patch:
        folders = source_folders()[:1]
        patch.setattr(texts, "source_folders", lambda: folders)
        return Texts.read()


def docstring(query: str, document: str) -> Docstring:
    return Docstring(Pair(query, document), "package", "package.module")


def both(docstrings: tuple[Docstring, ...]) -> set[str]:
    return {text for each in docstrings for text in (each.pair.query, each.pair.document)}


def test_no_text_is_trained_on_and_held_out(stdlib: Texts) -> None:
    assert len(stdlib.held_out) > 50
    assert not both(stdlib.train) & both(stdlib.held_out)


def test_a_held_out_text_is_in_no_row(stdlib: Texts) -> None:
    rows = [*summary_rows(stdlib.train, 10_000), *sentence_rows(stdlib.train, 10_000)]
    trained = {text for row in rows for _, text in row.texts()}
    assert len(trained) > 500
    assert not trained & both(stdlib.held_out)


def test_a_list_of_parameters_is_no_prose() -> None:
    listed = docstring("Hold the lock.", "Parameters ---------- lock : Lock, what is held. " * 3)
    assert [row.query for row in summary_rows([listed, docstring("Hold it.", PROSE)], 5)] == [
        "Hold it."
    ]
    assert not sentence_rows([listed], 5)


def test_a_sentence_lacks_words_of_the_one_it_is_to_find() -> None:
    rows = sentence_rows([docstring("Hold the lock for as long as that takes.", PROSE)], 5)
    assert {row.pos[0] for row in rows} >= set(PROSE.replace(". It", ".|It").split("|")[1:])
    for row in rows:
        assert 0 < len(row.query.split()) < len(row.pos[0].split())
        assert set(row.query.split()) <= set(row.pos[0].split())


def test_rows_are_no_more_than_asked_for(stdlib: Texts) -> None:
    assert len(sentence_rows(stdlib.train, 7)) == len(summary_rows(stdlib.train, 7)) == 7
