"""Bad input to mine and score: one line, exit code 2, and nothing left behind."""

import json
from pathlib import Path

import pytest
from anna_train.cli import run

ROW = json.dumps({"query": "q", "pos": ["p"]})


@pytest.mark.parametrize("verb", ["mine", "score"])
@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, [], "expected a file of training rows at {rows}, found none"),
        ("", [], "expected training rows in {rows}, found none"),
        (f"{ROW}\n\n{{\n", [], "in line 3 of {rows}"),
        (ROW + '\n{"query": "q", "pos": [1]}', [], "expected a text in pos[0], found 1"),
        (ROW, ["--depth", "0"], "expected --depth of 1 or more, found 0"),
        (ROW, ["--seed", "-1"], "expected --seed of 0 or more, found -1"),
        (ROW, ["--encoder", "{here}/none"], "expected a folder, found none at {here}/none"),
        (ROW, ["--encoder", "{here}"], "expected an artifact (manifest.json) or a sentence-"),
        (ROW, ["--query-prompt", "query"], "expected --encoder beside --query-prompt"),
        (ROW, ["--reranker", "{here}/none"], "learned, none or a model folder, found nothing"),
        (ROW, ["--reranker", "{here}"], "expected a cross-encoder's config.json in {here}"),
        (ROW, ["--out", "{rows}"], "expected --out to be another file than {rows}"),
        (ROW, ["--out", "{here}/no/out"], "expected the folder {here}/no for out, found none"),
        (ROW, ["--out", "{here}/there"], "--overwrite replaces it"),
    ],
)
def test_wrong_input_is_one_line(
    verb: str,
    content: str | None,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _refused(verb, content, arguments, message, tmp_path, capsys)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (ROW, ["--negatives", "0"], "expected --negatives of 1 or more, found 0"),
        (ROW, ["--from-rank", "0"], "expected --from-rank of 1 or more, found 0"),
        (ROW, ["--margin", "-1"], "expected --margin to be 0 or more, found -1.0"),
        (ROW, ["--spread", "nan"], "expected --spread to be 0 or more, found nan"),
        (ROW, [], "expected two different texts or more to choose negatives from, found 1"),
        (ROW, ["--corpus", "{here}/none"], "expected a file of texts at {here}/none, found none"),
        (
            ROW,
            ["--corpus", "{here}/bad.jsonl"],
            'a text in "text", found \'{{"t": 1}}\', in line 2',
        ),
        (ROW, ["--corpus", "{here}/latin.txt"], "expected UTF-8, found other bytes, in line 1 of"),
        (
            ROW + '\n{"query": "r", "pos": ["s"]}',
            [],
            "expected 16 different queries or more to learn a reranker from, found 2",
        ),
        (
            '{"query": "?", "pos": ["!"]}\n{"query": "?", "pos": ["."]}',
            [],
            "expected words in the texts to mine from, found none",
        ),
    ],
)
def test_wrong_input_to_mine_is_one_line(
    content: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _refused("mine", content, arguments, message, tmp_path, capsys)


SCORED = json.dumps(
    {"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1], "neg_scores": [0]}
)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (ROW, [], "expected rows with negatives, found none in {rows}; anna-train mine"),
        (SCORED, ["--entropy-low", "0.7"], "expected 0 < --entropy-low <= --entropy-high < 1"),
        (SCORED, ["--entropy-high", "1"], "found 0.2 and 1.0"),
        (SCORED, ["--weights", "1,2"], "expected --weights as in 1,0,0, found '1,2'"),
        (SCORED, ["--weights", "0,0,0"], "expected --weights of 0 or more, one of them above"),
        (SCORED, ["--weights", "1,-1,0"], "expected --weights of 0 or more"),
        (SCORED, ["--weights", "1,1,0"], "expected --again beside --weights"),
        (
            SCORED + '\n{"query": "q", "pos": ["p"], "neg": ["n"]}',
            [],
            "expected scores in all rows or in none, found them in 1 of 2",
        ),
        (SCORED[:-1] + ', "temperature": 0}', [], "expected a number above 0 in temperature"),
        (SCORED.replace("[1]", "[0]"), [], "expected scores that tell texts apart"),
    ],
)
def test_wrong_input_to_score_is_one_line(
    content: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _refused("score", content, arguments, message, tmp_path, capsys)


def _refused(
    verb: str,
    content: str | None,
    arguments: list[str],
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = folder / "rows.jsonl"
    if content is not None:
        rows.write_text(content)
    (folder / "there").write_text("kept")
    (folder / "bad.jsonl").write_text('{"text": "t"}\n{"t": 1}\n')
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    filled = [argument.format(here=folder, rows=rows) for argument in arguments]
    out = [] if "--out" in filled else ["--out", str(folder / "out.jsonl")]
    before = sorted(folder.iterdir())
    assert run([verb, str(rows), *out, *filled]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert message.format(here=folder, rows=rows) in printed.err
    assert sorted(folder.iterdir()) == before
    assert (folder / "there").read_text() == "kept"
