"""Which texts are calibrated on, in front of what, and which files are refused."""

import random
from pathlib import Path

import pytest

from anna_export.calibrate import texts
from anna_export.calibrate.texts import calibration_texts
from anna_export.errors import InputError
from anna_export.spec import read_spec
from anna_export.text.framing import read_framing
from anna_export.text.prompts import Prompt, Prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.texts import long_text, ordinary_texts
from tests.support.types import Refused


@pytest.fixture(scope="module")
def tokeniser(base: Path) -> Tokeniser:
    return Tokeniser.open(base, read_framing(base, read_spec(base), 61))


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_default_texts_are_the_same_every_time(tokeniser: Tokeniser) -> None:
    first = calibration_texts(None, tokeniser, Prompts({}))
    random.seed(5)
    assert calibration_texts(None, tokeniser, Prompts({})) == first
    assert len(first.texts) == len(set(first.texts)) > 9


def test_texts_of_a_file_are_taken_in_a_seeded_order(tokeniser: Tokeniser, tmp_path: Path) -> None:
    lines = [f"text {number}" for number in range(40)]
    source = write(tmp_path / "t.txt", lines)
    first = calibration_texts(source, tokeniser, Prompts({}))
    random.seed(5)
    assert calibration_texts(source, tokeniser, Prompts({})) == first
    assert sorted(first.texts) == sorted(lines) and first.texts != lines


def test_prompts_stand_in_front_in_turn_and_so_does_none(
    tokeniser: Tokeniser, tmp_path: Path
) -> None:
    source = write(tmp_path / "t.txt", [f"text {number}" for number in range(7)])
    prompts = Prompts.of_fronts({"query": "Query: ", "passage": "Passage: ", "same": "Query: "})
    chosen = calibration_texts(source, tokeniser, prompts)
    fronts = ["", "Passage: ", "Query: "] * 3
    assert chosen.rows == [
        tokeniser.ids([text], Prompt(front))[0]
        for text, front in zip(chosen.texts, fronts, strict=False)
    ]


def test_texts_that_would_be_cut_are_left_out(tokeniser: Tokeniser, tmp_path: Path) -> None:
    texts = [long_text(words) for words in range(20, 61)]
    chosen = calibration_texts(write(tmp_path / "t.txt", texts), tokeniser, Prompts({}))
    lengths = {text: len(ids) for text, ids in zip(texts, tokeniser.ids(texts), strict=True)}
    assert set(chosen.texts) == {text for text in texts if lengths[text] < 61}
    assert 60 in lengths.values() and 61 in lengths.values()


def test_blank_texts_are_left_out(tokeniser: Tokeniser, tmp_path: Path) -> None:
    chosen = calibration_texts(
        write(tmp_path / "t.txt", ["", "a", " \t", "b"]), tokeniser, Prompts({})
    )
    assert sorted(chosen.texts) == ["a", "b"]


def test_no_more_tokens_are_taken_than_memory_is_planned_for(
    tokeniser: Tokeniser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "t.txt", ordinary_texts(40))
    monkeypatch.setattr(texts, "MOST_TOKENS", 200)
    counted_texts: list[str] = []
    ids = Tokeniser.ids

    def counted(self: Tokeniser, batch: list[str], prompt: Prompt) -> list[list[int]]:
        counted_texts.extend(batch)
        return ids(self, batch, prompt)

    monkeypatch.setattr(Tokeniser, "ids", counted)
    chosen = calibration_texts(source, tokeniser, Prompts({}))
    assert 140 < chosen.tokens == sum(map(len, chosen.rows)) <= 200
    # nor is a large file tokenised to its end
    assert len(counted_texts) < 25


def test_text_longer_than_all_that_may_be_taken_does_not_stand_in_others_way(
    tokeniser: Tokeniser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "MOST_TOKENS", 30)
    lines = [long_text(40), long_text(41), "a", long_text(42), "b"]
    chosen = calibration_texts(write(tmp_path / "t.txt", lines), tokeniser, Prompts({}))
    assert sorted(chosen.texts) == ["a", "b"]
    with pytest.raises(InputError, match="at most 30 tokens"):
        calibration_texts(write(tmp_path / "t.txt", lines[:2]), tokeniser, Prompts({}))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.txt", "", "expected at least one text, found none in"),
        ("t.jsonl", "\n\n", "expected at least one text, found none in"),
        ("t.txt", "\n  \n\t\n", "expected calibration texts, found only blank ones in"),
        ("t.jsonl", '{"text": " "}\n', "expected calibration texts, found only blank ones in"),
        ("t.jsonl", '{"body": "a"}\n', "expected a text under 'text', found"),
        ("t.txt", f"{'word ' * 99}\n", "expected calibration texts of at most 60 tokens"),
        ("t.csv", "a\n", "expected texts in .txt or .jsonl, found t.csv"),
        ("t.txt", None, "expected a file of texts, found none at"),
    ],
    ids=["empty", "no line", "blank", "blank json", "no text", "long", "kind", "missing"],
)
def test_texts_that_cannot_be_calibrated_on_are_refused(
    base: Path,
    tmp_path: Path,
    root: Path,
    refused: Refused,
    name: str,
    content: str | None,
    expected: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    arguments = ["--model", base, "--int8", "--max-tokens", 61, "--calibration", tmp_path / name]
    line = refused(*arguments, "--out", root / "new" / "out")
    assert line.startswith(expected) and (str(tmp_path) in line or name == "t.csv")
