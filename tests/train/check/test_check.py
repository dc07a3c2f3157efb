"""The data doctor: every rule finds its seeded mistake once, where it is, and no other."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anna_train.check import duplicates, overlap, scores, texts
from anna_train.check.doctor import MALFORMED, CheckRequest, Report, check
from anna_train.check.findings import Finding, Severity
from anna_train.check.scores import relative_entropy
from anna_train.check.words import grams, words
from anna_train.cli import run

from anna_export.errors import InputError, MissingError

Fields = dict[str, Any]
VOCABULARY = [f"{start}{end}" for start in "bcdfghjklmnp" for end in ("ando", "ire", "oost", "u")]


def text(seed: object, length: int = 16) -> str:
    return " ".join(random.Random(str(seed)).choices(VOCABULARY, k=length))


def row(seed: object, **changes: Any) -> Fields:
    """A row that no rule finds anything in."""
    return {
        "query": text(f"{seed} query", 8),
        "pos": [text(f"{seed} pos")],
        "neg": [text(f"{seed} neg {number}") for number in range(2)],
        "pos_scores": [2.5],
        "neg_scores": [1.5, 0.5],
    } | changes


def write(path: Path, *lines: Fields | str) -> Path:
    path.write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    )
    return path


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write(tmp_path / "clean.jsonl", *(row(f"clean {number}") for number in range(40)))


def seeded(rule: str) -> tuple[list[Fields | str], str, Severity]:
    """Rows with one mistake, where it is found (line and field), and how bad it is."""
    first, other = row(f"{rule} 1"), row(f"{rule} 2")
    error, warning = Severity.ERROR, Severity.WARNING
    match rule:
        case "malformed row":
            return [first, {**other, "pos": [3]}], "2 pos[0]", error
        case "empty text":
            return [{**first, "neg": [first["neg"][0], " \n"]}], "1 neg[1]", error
        case "repeated row":
            return [first, {**first, "neg": other["neg"]}], "2 query", warning
        case "repeated query":
            return [first, {**other, "query": first["query"]}], "2 query", warning
        case "near-duplicate query":
            long = text(rule, 40)
            again = {**other, "query": f"{long[:-1]}x."}
            return [{**first, "query": long}, again], "2 query", warning
        case "near-duplicate document":
            long = text(rule, 40)
            again = {**other, "neg": [other["neg"][0], long.upper()]}
            return [{**first, "pos": [long]}, again], "2 neg[1]", warning
        case "positive among negatives":
            return [{**first, "neg": [first["neg"][0], f" {first['pos'][0]}"]}], "1 neg[1]", error
        case "repeated negative":
            return [{**first, "neg": [first["neg"][0]] * 2}], "1 neg[1]", warning
        case "query is its positive":
            return [{**first, "pos": [f"{first['query']} "]}], "1 pos[0]", warning
        case "special token":
            return [{**first, "pos": [f"{first['pos'][0]}</s> a</s>"]}], "1 pos[0]", warning
        case "negative above positive":
            return [{**first, "neg_scores": [1.0, 2.6]}], "1 neg_scores[1]", warning
        case "no negatives":
            bare = {**first, "neg": [], "neg_scores": [], "type": "sts"}
            return [other, bare], "2 neg", error
        case "partly scored":
            bare = {**other, "pos_scores": None, "neg_scores": None}
            return [first, bare], "2 pos_scores", warning
        case "teacher's entropy":
            return [{**first, "neg_scores": [2.4, 2.4]}, other | FLAT], "1 pos_scores", warning
        case "truncated":
            return [first, {**other, "pos": [text(rule, 200)]}], "2 pos[0]", warning
        case "evaluation text":
            return [first, {**other, "neg": [text(rule), EVALUATED]}], "2 neg[1]", error
        case "evaluation overlap":
            shared = f"{text(rule, 5)} {' '.join(EVALUATED.split()[2:15])} {text(first, 5)}"
            return [{**first, "pos": [shared]}], "1 pos[0]", warning
    raise AssertionError(rule)


FLAT: Fields = {"pos_scores": [0.1], "neg_scores": [0.0, 0.0]}
EVALUATED = text("evaluated", 20)
RULES = (
    MALFORMED,
    texts.EMPTY,
    texts.POSITIVE_IS_NEGATIVE,
    texts.REPEATED_NEGATIVE,
    texts.QUERY_IS_POSITIVE,
    texts.NO_NEGATIVES,
    texts.SPECIAL_TOKEN,
    texts.TRUNCATED,
    scores.NEGATIVE_ABOVE,
    scores.PARTLY_SCORED,
    scores.TEACHER,
    duplicates.REPEATED_ROW,
    duplicates.REPEATED_QUERY,
    duplicates.NEAR_QUERY,
    duplicates.NEAR_DOCUMENT,
    overlap.EVALUATION_TEXT,
    overlap.OVERLAP,
)


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    lines = ({"id": f"{n}", "text": text(f"evaluated {n}", 20)} for n in range(3))
    return write(tmp_path / "evaluation.jsonl", *lines, {"id": "3", "texts": [EVALUATED.title()]})


@pytest.fixture
def request_of(base: Path, evaluation: Path) -> Callable[..., CheckRequest]:
    """Everything that can be asked for; a text of 16 made-up words is of fewer than 128 tokens."""
    return lambda *paths: CheckRequest(paths, base, 128, (evaluation,))


def findings_of(report: Report) -> list[tuple[str, str, str, Severity]]:
    return [
        (finding.rule, finding.path.name, f"{finding.line} {finding.field}", finding.severity)
        for finding in report.findings
    ]


def test_clean_rows_give_nothing(clean: Path, request_of: Callable[..., CheckRequest]) -> None:
    report = check(request_of(clean), keeps_all=True)
    assert not report.findings and report.rows == 40
    figures = report.files[clean]
    assert figures["teacher_entropy"] == pytest.approx(relative_entropy([2.5, 1.5, 0.5]))
    assert figures["truncated_share"] == figures["rows_with_negative_above"] == 0
    assert figures["scored_rows"] == 40


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_finds_its_mistake_and_no_other_rule_does(
    rule: str, clean: Path, request_of: Callable[..., CheckRequest], tmp_path: Path
) -> None:
    rows, where, severity = seeded(rule)
    report = check(request_of(clean, write(tmp_path / "bad.jsonl", *rows)), keeps_all=True)
    assert findings_of(report) == [(rule, "bad.jsonl", where, severity)]
    assert (report.errors, report.warnings) == ((1, 0) if severity is Severity.ERROR else (0, 1))


def test_all_mistakes_together_are_found_once_each(
    clean: Path, request_of: Callable[..., CheckRequest], tmp_path: Path
) -> None:
    # each in its own file: what is judged of a file as a whole would change beside others' rows
    files = [
        write(tmp_path / f"{number}.jsonl", *seeded(rule)[0]) for number, rule in enumerate(RULES)
    ]
    report = check(request_of(clean, *files))
    assert report.counts == dict.fromkeys(RULES, 1)


@pytest.mark.parametrize("rule", RULES)
def test_a_message_says_what_was_expected_found_and_to_do(
    rule: str, request_of: Callable[..., CheckRequest], tmp_path: Path
) -> None:
    report = check(request_of(write(tmp_path / "bad.jsonl", *seeded(rule)[0])))
    message = report.first(rule)[0].message
    assert message.startswith("expected ") and ", found " in message and "; " in message
    assert "\n" not in message


def test_every_malformed_row_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", "{", row(1), "3", {**row(2), "type": "x"}, "{}")
    report = check(CheckRequest((path,)), keeps_all=True)
    assert [finding.location for finding in report.findings] == [
        f"{path}:1",
        f"{path}:3",
        f"{path}:4 type",
        f"{path}:5 query",
    ]


def test_one_hot_scores_are_told_from_flat_ones(tmp_path: Path) -> None:
    sharp = row(1, pos_scores=[40.0], neg_scores=[1.0, -1.0])
    reports = [
        check(CheckRequest((write(tmp_path / f"{number}.jsonl", fields),)))
        for number, fields in enumerate([sharp, row(1) | FLAT])
    ]
    (one_hot,), (flat,) = (report.first(scores.TEACHER) for report in reports)
    assert "one-hot: soft labels teach nothing; run anna-train score" in one_hot.message
    assert "flat" in flat.message


@pytest.mark.parametrize(
    ("logits", "expected"),
    [([0.0, 0.0, 0.0], 1.0), ([1000.0, 0.0], 0.0), ([0.0, 0.0, -1000.0], 0.63093)],
)
def test_entropy_is_relative_to_the_largest(logits: list[float], expected: float) -> None:
    assert relative_entropy(logits) == pytest.approx(expected, abs=1e-5)


def test_a_negative_is_held_to_the_lowest_positive(tmp_path: Path) -> None:
    several = {"pos": [text("a"), text("b")], "neg_scores": [1.0, 2.0]}
    rows = [row(1, **several, pos_scores=[3.0, low]) for low in (2.0, 1.9)]
    reports = [
        check(CheckRequest((write(tmp_path / f"{number}.jsonl", fields),)))
        for number, fields in enumerate(rows)
    ]
    assert [report.counts for report in reports] == [{}, {scores.NEGATIVE_ABOVE: 1}]


def test_five_percent_of_texts_may_be_cut(base: Path, tmp_path: Path) -> None:
    rows = [row(number) for number in range(5)]  # of 20 texts
    rows[3]["pos"] = [text("long", 200)]
    path = write(tmp_path / "rows.jsonl", *rows)
    report = check(CheckRequest((path,), base, 128))
    assert not report.counts and report.files[path]["truncated_share"] == 0.05


def test_a_text_as_long_as_the_limit_is_not_cut(base: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row(1))
    longest = int(check(CheckRequest((path,), base)).files[path]["longest_tokens"])
    assert not check(CheckRequest((path,), base, longest)).counts
    assert check(CheckRequest((path,), base, longest - 1)).counts == {texts.TRUNCATED: 1}


def test_special_tokens_are_the_models_own(base: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row(1, query=f"{text(1, 8)} <instruct> <unk>"))
    (by_default,), (by_model,) = (
        check(CheckRequest((path,), model)).first(texts.SPECIAL_TOKEN) for model in (None, base)
    )
    assert "<instruct>, <unk>" in by_default.message and "taken as plain text" in by_default.message
    assert by_model.field == "query"


def test_a_query_under_another_prompt_is_another_query(tmp_path: Path) -> None:
    rows = [row(1), row(1, prompt="a"), row(1, prompt="a", type="clustering")]
    report = check(CheckRequest((write(tmp_path / "rows.jsonl", *rows),)))
    assert not report.counts


def test_duplicates_are_found_across_files(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, row(1)) for name in ("a.jsonl", "b.jsonl"))
    report = check(CheckRequest((first, second)))
    assert report.counts == {duplicates.REPEATED_ROW: 1}
    assert f"line 1 of {first}" in report.findings[0].message


def test_a_document_of_several_queries_is_no_duplicate(tmp_path: Path) -> None:
    rows = [row(1), row(2, pos=row(1)["pos"])]
    assert not check(CheckRequest((write(tmp_path / "rows.jsonl", *rows),))).counts


def test_similarity_is_exact_at_its_limit(tmp_path: Path) -> None:
    # n + 2 words are n runs of three; the last word changes one: (n - 1) / (n + 1)
    def report(runs: int) -> Report:
        long = [f"word{number}" for number in range(runs + 2)]
        rows = [row(1, pos=[" ".join(long)]), row(2, pos=[" ".join([*long[:-1], "other"])])]
        return check(CheckRequest((write(tmp_path / f"{runs}.jsonl", *rows),)))

    assert not report(18).counts  # 17 of 19: 0.895
    assert report(19).counts == {duplicates.NEAR_DOCUMENT: 1}  # 18 of 20: 0.9


def test_near_duplicates_are_found_across_files_and_among_look_alikes(tmp_path: Path) -> None:
    # 30 texts of one template share bands without being alike
    template = text("template", 30)
    other = [row(n, pos=[f"{template} {text(n, 12)}"]) for n in range(30)]
    first = write(tmp_path / "a.jsonl", *other[:20], row("a", neg=["short", EVALUATED * 2]))
    second = write(tmp_path / "b.jsonl", *other[20:], row("b", neg=[f"{EVALUATED * 2}!", "brief"]))
    (finding,) = check(CheckRequest((first, second))).findings
    assert finding.location == f"{second}:11 neg[0]"
    assert f"found neg[1] of line 21 of {first} almost again (similarity 1.00)" in finding.message


def test_near_duplicates_are_seldom_missed(tmp_path: Path) -> None:
    # 60 pairs of similarity 0.92: each is missed with a chance of 0.4 %
    rows = []
    for number in range(60):
        long = text(number, 50).split()
        changed = [*long[:-2], "other", long[-1]]
        rows += [row(f"{number} a", pos=[" ".join(long)])]
        rows += [row(f"{number} b", pos=[" ".join(changed[:-1])])]
    report = check(CheckRequest((write(tmp_path / "rows.jsonl", *rows),)), keeps_all=True)
    assert set(report.counts) == {duplicates.NEAR_DOCUMENT}
    assert report.counts[duplicates.NEAR_DOCUMENT] >= 57


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"query": EVALUATED, "pos": ["p q r"]}),
        json.dumps({"a": {"b": [1, EVALUATED]}}),
        json.dumps([EVALUATED]),
        f"{EVALUATED}\r\n",
        f"\ufeff\n{EVALUATED.upper()}!",
    ],
    ids=["rows", "nested", "list", "lines", "mark and case"],
)
def test_evaluation_texts_are_read_from_rows_json_and_lines(content: str, tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation"
    evaluation.write_bytes(content.encode())
    path = write(tmp_path / "rows.jsonl", row(1, query=EVALUATED))
    assert check(CheckRequest((path,), against=(evaluation,))).counts == {
        overlap.EVALUATION_TEXT: 1
    }


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not(tmp_path: Path) -> None:
    evaluation = write(tmp_path / "evaluation", EVALUATED)

    def counts(shared: int) -> dict[str, int]:
        both = f"{text(1, 9)} {' '.join(EVALUATED.split()[:shared])} {text(2, 9)}"
        path = write(tmp_path / f"{shared}.jsonl", row(1, pos=[both]))
        return check(CheckRequest((path,), against=(evaluation,))).counts

    assert counts(12) == {} and counts(13) == {overlap.OVERLAP: 1}


def test_labels_and_ids_are_no_evaluation_texts(tmp_path: Path) -> None:
    evaluation = write(tmp_path / "evaluation", {"text": EVALUATED, "label": "very good"})
    path = write(tmp_path / "rows.jsonl", row(1, pos=["very good"]))
    assert not check(CheckRequest((path,), against=(evaluation,))).counts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected evaluation texts of 3 words or more"),
        (b"two words\n", "expected evaluation texts of 3 words or more"),
        (b'{"a": "b c d"}\n{"a": "b', "expected JSON as in the lines before, .* in line 2 of"),
        (b"a b c\n\xff", "expected UTF-8, found other bytes, in line 2 of"),
    ],
)
def test_unusable_evaluation_files_are_refused(
    content: bytes, message: str, clean: Path, tmp_path: Path
) -> None:
    (tmp_path / "evaluation").write_bytes(content)
    with pytest.raises(InputError, match=message):
        check(CheckRequest((clean,), against=(tmp_path / "evaluation",)))


def test_missing_evaluation_file_is_refused(clean: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="expected a file of evaluation texts"):
        check(CheckRequest((clean,), against=(tmp_path / "none",)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("It's 3 Words, été!", ["it", "s", "3", "words", "été"]),
        ("日本語 text", ["日", "本", "語", "text"]),
        (" .\n", []),
    ],
)
def test_words_have_no_case_and_no_punctuation(content: str, expected: list[str]) -> None:
    assert words(content) == expected


def test_grams_of_a_short_text_are_the_text() -> None:
    assert grams(["a", "b", "c", "d"], 3) == {"a b c", "b c d"}
    assert grams(["a"], 3) == {"a"} and grams([], 3) == set()


def test_only_a_rules_first_places_are_kept_unless_all_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *["{"] * 9)
    short, full = (check(CheckRequest((path,)), keeps_all=all_of) for all_of in (False, True))
    assert (len(short.findings), len(full.findings)) == (3, 9)
    assert short.errors == full.errors == 9


def test_progress_ends_with_all_rows(clean: Path) -> None:
    reports: list[tuple[int, int]] = []
    check(CheckRequest((clean,)), progress=lambda done, total: reports.append((done, total)))
    assert reports[-1] == (40, 40)


def test_command_prints_a_table_and_fails_for_errors_alone(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write(tmp_path / "bad.jsonl", *["{"] * 4)
    warned = write(tmp_path / "warned.jsonl", *seeded("special token")[0])
    assert run(["check", str(clean)]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    assert run(["check", str(warned)]) == 0
    assert run(["check", str(clean), str(bad)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert f"malformed row error 4 {bad}:1, {bad}:2, {bad}:3 malformed row expected JSON" in out
    assert "4 errors, 0 warnings" in out


def test_command_prints_every_finding_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write(tmp_path / "bad.jsonl", row(1), *["{"] * 5)
    assert run(["check", str(bad), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert [finding["line"] for finding in printed["findings"]] == [2, 3, 4, 5, 6]
    assert printed["findings"][0]["severity"] == "error" and printed["errors"] == 5
    assert printed["files"][str(bad)]["malformed_rows"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected DATA, found none"),
        (["none.jsonl"], "expected a file of training rows at none.jsonl, found none"),
        (["rows.jsonl", "./rows.jsonl"], "expected every file once"),
        (["rows.jsonl", "--max-tokens", "9"], "expected --model with --max-tokens"),
        (["rows.jsonl", "--model", "none"], "expected a folder, found none at none"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "rows.jsonl", row(1))
    monkeypatch.chdir(tmp_path)
    assert run(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_place_is_file_line_and_field() -> None:
    finding = Finding("rule", Severity.ERROR, Path("a.jsonl"), 3, "pos[1]", "message")
    assert finding.location == "a.jsonl:3 pos[1]"
