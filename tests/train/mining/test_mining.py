"""Mined rows: what may be a negative, where it came from, and that nothing depends on chance."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from anna_train.cli import run
from anna_train.data.rows import RowFile, text_key
from anna_train.mining.collection import collect
from anna_train.mining.margin import AdaptiveMargin
from anna_train.mining.mine import MiningReport, mine
from anna_train.mining.settings import MiningSettings, Sampling, TeacherSettings
from sentence_transformers import CrossEncoder
from torch.nn import Identity

from anna_export import open_encoder
from anna_export.artifact.folder import Artifact
from demo.corpus import Pair

WriteRows = Callable[[Sequence[dict[str, Any]]], Path]
Rows = list[dict[str, Any]]

# drops only what scores above the positive
NO_MARGIN = AdaptiveMargin(0, 0, 0)
COSINES = TeacherSettings(reranker="none")


def mined(rows: Path, settings: MiningSettings | None = None) -> Rows:
    out = rows.with_name("mined.jsonl")
    mine(rows, out, settings, overwrite=True)
    return read(out)


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


@pytest.mark.parametrize("reranker", ["learned", "none"])
def test_negatives_are_other_queries_positives_the_best_first(reranker: Any, rows: Path) -> None:
    mined_rows = mined(rows, MiningSettings(TeacherSettings(reranker=reranker)))
    documents = {row["pos"][0] for row in mined_rows}
    assert sum(len(row["neg"]) for row in mined_rows) > 2 * len(mined_rows)
    for row in mined_rows:
        assert set(row["neg"]) <= documents - set(row["pos"])
        assert len(set(row["neg"])) == len(row["neg"]) <= 7
        scores = [origin["score"] for origin in row["mined"]]
        assert scores == sorted(scores, reverse=True)


def test_equal_texts_of_a_positive_a_negative_or_the_query_are_never_its_negatives(
    pairs: list[Pair], write: WriteRows
) -> None:
    hard = [{"query": pair.query, "pos": [pair.document]} for pair in pairs]
    first, second, third = (pair.document for pair in pairs[:3])
    # other rows answer with nearly the first row's own texts
    for number, text in enumerate(
        [f" {first.upper()}", second.replace(" ", "  "), pairs[0].query.title()]
    ):
        hard[40 + number]["pos"] = [text]
    hard[0] = {"query": pairs[0].query, "pos": [first], "neg": [second]}
    # the same query has another answer elsewhere
    hard[60] = {"query": pairs[0].query.upper(), "pos": [third]}
    settings = MiningSettings(COSINES, AdaptiveMargin(0, 0, 0), negatives=90)
    row = mined(write(hard), settings)[0]
    barred = {text_key(text) for text in (first, second, third, pairs[0].query)}
    assert row["neg"][0] == second
    assert len(row["neg"]) > 1 and barred.isdisjoint(map(text_key, row["neg"][1:]))


def test_what_is_barred_is_every_text_equal_to_an_answer_a_negative_or_the_query(
    write: WriteRows,
) -> None:
    rows = [
        {"query": "What is it?", "pos": ["A cat."], "neg": ["A dog."]},
        {"query": "what  IS it?", "pos": ["A tiger."]},
        {"query": "Another", "pos": ["a CAT.", "WHAT is it?", "a  dog.", "A bird."]},
    ]
    source = RowFile(write(rows))
    collection = collect(source)
    barred = {collection.texts[index] for index in collection.question(source[0]).barred}
    assert barred == {"A cat.", "A tiger.", "WHAT is it?", "a  dog."}
    barred = {
        collection.texts[index] for index in collection.question(source[0], replace=True).barred
    }
    assert barred == {"A cat.", "A tiger.", "WHAT is it?"}


def test_no_two_negatives_of_a_row_are_equal_but_for_case_or_space(
    pairs: list[Pair], write: WriteRows
) -> None:
    twice = [
        {"query": f"{pair.query} {part}", "pos": [pair.document.upper() if part else pair.document]}
        for pair in pairs[:40]
        for part in (0, 1)
    ]
    for row in mined(write(twice), MiningSettings(COSINES, NO_MARGIN, negatives=60)):
        keys = [text_key(text) for text in row["neg"]]
        assert len(set(keys)) == len(keys)


def test_a_negative_keeps_where_it_came_from(rows: Path) -> None:
    mined_rows = mined(rows)
    assert {origin["rule"] for row in mined_rows for origin in row["mined"]} >= {"margin", "spread"}
    for row in mined_rows:
        assert len(row["mined"]) == len(row["neg"]) == len(row["neg_scores"])
        for origin, logit in zip(row["mined"], row["neg_scores"], strict=True):
            assert origin["score"] <= origin["threshold"] < row["mining"]["positive_score"]
            assert origin["logit"] == logit
            # both are rounded to six digits
            assert origin["score"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=2e-6)
            ranks = {origin["bm25_rank"], origin["dense_rank"]}
            assert ranks != {None} and all(rank is None or 1 <= rank <= 100 for rank in ranks)
        assert len(row["neg"]) == min(7, row["mining"]["kept"])
        assert row["mining"]["kept"] <= row["mining"]["candidates"]


def test_the_threshold_is_the_largest_term_below_the_lowest_positive(
    pairs: list[Pair], write: WriteRows
) -> None:
    two = [
        {"query": a.query, "pos": [a.document, b.document]}
        for a, b in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    for row in mined(write(two), MiningSettings(negatives=3)):
        lowest = min(1 / (1 + math.exp(-logit)) for logit in row["pos_scores"])
        mining = row["mining"]
        assert mining["positive_score"] == pytest.approx(lowest, abs=2e-6)
        for origin in row["mined"]:
            term = max(0.02, 0.05 * lowest, 0.25 * mining["sigma"])
            assert origin["threshold"] == pytest.approx(lowest - term, abs=4e-6)


def test_without_a_reranker_scores_are_cosines_and_rows_have_no_logits(rows: Path) -> None:
    for row in mined(rows, MiningSettings(COSINES)):
        assert "pos_scores" not in row and "neg_scores" not in row
        assert all(origin["score"] == origin["logit"] for origin in row["mined"])


def test_negatives_of_a_row_stay_in_front_and_make_up_the_number(
    pairs: list[Pair], write: WriteRows
) -> None:
    have = [
        {"query": pair.query, "pos": [pair.document], "neg": [f"My own {n}.", "Not mined."]}
        for n, pair in enumerate(pairs)
    ]
    path = write(have)
    for number, row in enumerate(mined(path, MiningSettings(margin=NO_MARGIN, negatives=4))):
        assert row["neg"][:2] == [f"My own {number}.", "Not mined."]
        assert row["mined"][:2] == [None, None] and all(row["mined"][2:])
        assert len(row["neg"]) <= 4 and len(row["neg_scores"]) == len(row["neg"])
    for row in mined(path, MiningSettings(margin=NO_MARGIN, replace=True)):
        assert not {"Not mined."} & set(row["neg"]) and all(row["mined"])


def test_mining_what_is_mined_keeps_negatives_and_where_they_came_from(rows: Path) -> None:
    once = mined(rows, MiningSettings(margin=NO_MARGIN, negatives=3))
    again = rows.with_name("again.jsonl")
    again.write_text("".join(json.dumps(row) + "\n" for row in once))
    full = [number for number, row in enumerate(once) if len(row["neg"]) == 3]
    twice = mined(again, MiningSettings(margin=NO_MARGIN, negatives=3))
    assert full
    for number in full:
        assert twice[number]["neg"] == once[number]["neg"]
        assert twice[number]["mined"] == once[number]["mined"]


def test_other_fields_stay_and_a_stale_temperature_goes(
    pairs: list[Pair], write: WriteRows
) -> None:
    fields = {"prompt": "Find it", "type": "sts", "id": 7, "temperature": 3.0}
    path = write([{"query": pair.query, "pos": [pair.document], **fields} for pair in pairs])
    for row in mined(path):
        assert (row["prompt"], row["type"], row["id"]) == ("Find it", "sts", 7)
        assert "temperature" not in row


def test_from_rank_skips_the_best_that_may_be_negatives(rows: Path) -> None:
    every = mined(rows, MiningSettings(COSINES, NO_MARGIN, negatives=8))
    later = mined(rows, MiningSettings(COSINES, NO_MARGIN, negatives=5, from_rank=4))
    assert [row["neg"] for row in later] == [row["neg"][3:] for row in every]


def test_random_sampling_draws_by_seed_from_all_that_may_be_negatives(rows: Path) -> None:
    def drawn(seed: int) -> Rows:
        teacher = TeacherSettings(reranker="none", seed=seed)
        return mined(rows, MiningSettings(teacher, NO_MARGIN, sampling=Sampling.RANDOM))

    top = mined(rows, MiningSettings(COSINES, NO_MARGIN))
    assert drawn(1) == drawn(1) != drawn(2)
    assert [row["neg"] for row in drawn(1)] != [row["neg"] for row in top]
    for row in drawn(1):
        scores = [origin["score"] for origin in row["mined"]]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_a_corpus_gives_more_texts_to_mine_from(suffix: str, pairs: list[Pair], rows: Path) -> None:
    # shares the words of every query, so that BM25 finds it
    texts = [f"{pair.query} But of another kind" for pair in pairs[:50]]
    corpus = rows.with_name(f"corpus{suffix}")
    written = [*texts, texts[0].upper()]
    lines = [json.dumps({"text": text}) if suffix == ".jsonl" else text for text in written]
    corpus.write_text("\n\n".join(lines))
    report = mine(rows, rows.with_name("out"), MiningSettings(COSINES, corpus=corpus))
    assert report.texts == len(pairs) + 50
    wide = MiningSettings(COSINES, AdaptiveMargin(0, 0, 0), corpus=corpus, negatives=150)
    assert any(set(texts) & set(row["neg"]) for row in mined(rows, wide))


def test_a_cross_encoder_gives_logits_and_its_sigmoids_decide(
    pairs: list[Pair], rows: Path, reranker_folder: Path
) -> None:
    teacher = TeacherSettings(reranker=reranker_folder, depth=20)
    mined_rows = mined(rows, MiningSettings(teacher, NO_MARGIN))
    model = CrossEncoder(str(reranker_folder))
    for row in mined_rows[:10]:
        pairs_ = [(row["query"], text) for text in (*row["pos"], *row["neg"])]
        logits = model.predict(pairs_, activation_fn=Identity(), show_progress_bar=False)
        # padding in another batch changes the last bits of a float32
        assert [*row["pos_scores"], *row["neg_scores"]] == pytest.approx(logits.tolist(), abs=1e-4)
        for origin in row["mined"]:
            assert origin["score"] == pytest.approx(1 / (1 + math.exp(-origin["logit"])), abs=2e-6)
    assert any(row["neg"] for row in mined_rows[:10])


def test_an_artifact_is_the_dense_retriever(rows: Path, artifact: Artifact) -> None:
    teacher = TeacherSettings(encoder=artifact.folder, query_prompt="", reranker="none")
    encoder = open_encoder(artifact.folder)
    for row in mined(rows, MiningSettings(teacher, NO_MARGIN))[:10]:
        query, *texts = encoder.encode([row["query"], *row["neg"]], "")
        for origin, text in zip(row["mined"], texts, strict=True):
            assert origin["score"] == pytest.approx(float(query @ text), abs=1e-5)


def test_what_is_counted_adds_up(rows: Path) -> None:
    report: MiningReport = mine(rows, rows.with_name("out"), MiningSettings())
    mined_rows, counts = read(report.out), report.counts
    assert counts.rows == report.texts == len(mined_rows)
    assert counts.mined == counts.negatives == sum(len(row["neg"]) for row in mined_rows)
    assert counts.short == sum(len(row["neg"]) < 7 for row in mined_rows)
    assert counts.candidates == sum(row["mining"]["candidates"] for row in mined_rows)
    candidates_left = sum(row["mining"]["kept"] for row in mined_rows)
    assert sum(report.dropped.values()) == pytest.approx(1 - candidates_left / counts.candidates)
    # half of a docstring finds the other half far more often than by chance, which is 1 in 90
    assert min(report.first["bm25"], report.first["reranker"]) > 0.2
    assert 0 < report.first["dense"] < 1


def test_two_runs_write_the_same_bytes(rows: Path) -> None:
    outs = [rows.with_name(name) for name in ("one.jsonl", "two.jsonl")]
    for out in outs:
        mine(rows, out)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert sorted(path.name for path in rows.parent.iterdir()) == [
        "one.jsonl",
        "rows.jsonl",
        "two.jsonl",
    ]


def test_the_command_prints_a_summary_or_one_object(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(rows.with_name("out.jsonl"))
    assert run(["mine", str(rows), "--out", out, "--negatives", "3"]) == 0
    printed = capsys.readouterr().out
    assert "corpus          90 texts" in printed and "rows have fewer than 3" in printed
    assert run(["mine", str(rows), "--out", out, "--overwrite", "--json", "--negatives", "3"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["rows"] == 90 and set(value["dropped"]) == {"margin", "relative", "spread"}
    assert set(value["first"]) == {"bm25", "dense", "reranker"}
