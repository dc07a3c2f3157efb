"""Published scores beside an artifact's, and tasks a model was trained on."""

import json
from pathlib import Path

import pytest

from anna_export.errors import InputError
from anna_export.verify import published
from anna_export.verify.contamination import datasets_of, was_trained_on
from anna_export.verify.published import ARTIFACT, borda_ranks, summary

FILE = json.loads(Path(published.__file__).with_name("published.json").read_text())
TYPES = {"STS12": "STS", "STS13": "STS", "ArguAna": "Retrieval", "Own": "Retrieval"}


def test_means_are_over_tasks_and_over_types() -> None:
    standing = summary({"STS12": 0.8, "STS13": 0.6, "ArguAna": 0.1}, TYPES, local=False).standings[
        0
    ]
    assert standing.model == ARTIFACT
    assert standing.mean_over_tasks == pytest.approx(0.5)
    assert standing.mean_over_types == pytest.approx(0.4)
    assert standing.by_type == {"Retrieval": pytest.approx(0.1), "STS": pytest.approx(0.7)}


def test_published_models_stand_beside_it_over_the_same_tasks() -> None:
    means = summary({"STS12": 0.9, "Own": 0.5}, TYPES, local=True)
    (artifact, *others) = means.standings
    assert means.tasks == 1 and artifact.borda_rank == 1
    best = {standing.model: standing for standing in others}["LGAI-Embedding-Preview"]
    assert best.mean_over_tasks == pytest.approx(FILE["tasks"]["STS12"][2] / 100)
    assert best.borda_rank == 2 and "1 of these 2 tasks" in means.note
    assert "not comparable" in means.note


def test_of_the_whole_benchmark_the_published_means_are_shown_and_come_out() -> None:
    lgai = {name: row[2] / 100 for name, row in FILE["tasks"].items()}
    types = dict.fromkeys(lgai, "all")
    standings = {
        standing.model: standing for standing in summary(lgai, types, local=False).standings
    }
    assert len(standings) == 12 and standings[ARTIFACT].mean_over_tasks == pytest.approx(
        0.7412, abs=5e-5
    )
    assert standings["e5-mistral-7b-instruct"].mean_over_tasks == pytest.approx(0.6797, abs=5e-5)
    assert standings["Linq-Embed-Mistral"].mean_over_tasks == 0.698
    assert standings["Linq-Embed-Mistral"].borda_rank is None


def test_tasks_that_nobody_published_have_no_rank() -> None:
    means = summary({"Own": 0.5}, TYPES, local=True)
    assert len(means.standings) == 1 and means.standings[0].borda_rank is None


def test_borda_ranks_are_mtebs() -> None:
    import polars
    from mteb.benchmarks._create_table import _get_borda_rank

    scores = {
        "a": {"x": 0.5, "y": 0.2, "z": 0.1},
        "b": {"x": 0.5, "y": 0.3, "z": 0.05},
        "c": {"x": 0.4, "y": 0.3, "z": 0.2},
        "d": {"x": 0.1, "y": 0.1, "z": 0.0},
    }
    rows = polars.DataFrame(
        [{"model": model, **task_names} for model, task_names in scores.items()]
    )
    ranked = rows.with_columns(rank=_get_borda_rank(["x", "y", "z"]))
    assert borda_ranks(scores) == dict(ranked.select("model", "rank").iter_rows())


@pytest.mark.parametrize(
    ("named", "task_names", "expected"),
    [
        ("mteb/banking77", ("Banking77Classification",), True),
        ("STS12", ("STS12", "STS12", "mteb/sts12-sts"), True),
        ("sts", ("STS12", "STS12", "mteb/sts12-sts"), False),
        ("HotpotQA", ("HotpotQAHardNegatives",), True),
        ("hotpot_qa", ("HotpotQAHardNegatives",), True),
        ("stackexchange", ("StackExchangeClusteringP2P.v2",), True),
        ("fever", ("ClimateFEVERHardNegatives",), False),
        ("trec-covid", ("TRECCOVID", "TRECCOVID", "mteb/trec-covid"), True),
    ],
)
def test_names_of_training_data_are_those_of_tasks(
    named: str, task_names: tuple[str, ...], expected: bool
) -> None:
    assert was_trained_on(frozenset([named]), *task_names) is expected


def test_the_adapters_card_names_what_it_was_trained_on(tmp_path: Path) -> None:
    assert datasets_of(tmp_path, ["STS12"]) == {"STS12"} and datasets_of(None) == frozenset()
    card = tmp_path / "README.md"
    card.write_text("---\ndatasets:\n- mteb/banking77\n- fever\n---\n# An adapter\n")
    assert datasets_of(tmp_path, ["STS12"]) == {"STS12", "mteb/banking77", "fever"}
    card.write_text("# No front matter\n")
    assert datasets_of(tmp_path) == frozenset()
    card.write_text("---\ndatasets: {a: 1}\n---\n")
    with pytest.raises(InputError, match=r"expected datasets as a list of names in"):
        datasets_of(tmp_path)
    card.write_text("---\na: [\n---\n")
    with pytest.raises(InputError, match=r"expected YAML"):
        datasets_of(tmp_path)
