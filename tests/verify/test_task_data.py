"""Which tasks are run, where their data is, and every way in which it is not there."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anna_export.errors import AnnaError, InputError, MissingError
from anna_export.verify.samples import require_supported
from anna_export.verify.task_data import QUICK, TaskSource, load, sources
from tests.verify.small_tasks import write_small_tasks

CATEGORIES = {
    "Classification",
    "Clustering",
    "PairClassification",
    "Reranking",
    "Retrieval",
    "STS",
    "Summarization",
}
Edit = Callable[[Path, dict[str, Any]], None]


def test_a_folder_binds_each_task_to_its_files(small: Path) -> None:
    tasks = sources("quick", [], small)
    assert [source.name for source in tasks] == list(
        json.loads((small / "manifest.json").read_text())
    )
    for source in tasks:
        task = load(source)
        assert task.metadata.name == source.name and task.eval_splits == ["test"]
        assert task.metadata.dataset["path"] == str(small / "data" / source.name)
        assert task.metadata.dataset["revision"].startswith("local-")
    assert {source.build().metadata.type for source in tasks} == CATEGORIES
    assert tasks == sources("full", [], small)


def test_the_real_folder_is_read_as_its_own_loader_reads_it(real: Path) -> None:
    tasks = {source.name: source for source in sources("quick", [], real)}
    assert len(tasks) == 10
    task = load(tasks["CQADupstackGamingReranking"])
    assert (task.metadata.type, task.metadata.main_score) == ("Reranking", "map_at_1000")
    assert len(load(tasks["STS12"]).dataset["test"]) == 3108


@pytest.mark.slow
def test_quick_has_every_category_and_full_the_benchmark() -> None:
    quick = sources("quick", [], None)
    assert tuple(source.name for source in quick) == QUICK
    assert {source.build().metadata.type for source in quick} == CATEGORIES
    full = {source.name: source for source in sources("full", [], None)}
    assert len(full) == 41
    for source in full.values():
        require_supported(source.build())
    assert full["STS17"].build().hf_subsets == ["en-en"]
    assert full["AmazonCounterfactualClassification"].build().eval_splits == ["test"]


def test_a_task_is_built_anew_each_time(small: Path) -> None:
    (source,) = sources("quick", ["SmallClustering"], small)
    first, second = source.build(), source.build()
    assert first.rng_state.random() == second.rng_state.random()


def test_two_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    # datasets finds a converted folder again by its name and its configuration's text alone
    tasks = []
    for word in ("one", "two"):
        folder = write_small_tasks(tmp_path / word / "tasks", 20, ["SmallSTS"])
        data = folder / "data" / "SmallSTS"
        (path,) = data.glob("*.parquet")
        fields = {"sentence1": [word] * 30, "sentence2": ["and"] * 30, "score": [0.0] * 30}
        pq.write_table(pa.table(fields), data / "test.parquet", compression="none")
        readme = data / "README.md"
        readme.write_text(readme.read_text().replace(path.name, "test.parquet"))
        path.unlink()
        tasks.append((load(*sources("quick", [], folder)), (data / "test.parquet").stat().st_size))
    (first, size), (second, same_size) = tasks
    assert size == same_size
    assert [task.dataset["test"]["sentence1"][0] for task in (first, second)] == ["one", "two"]


@pytest.mark.parametrize(
    ("edit", "kind", "message"),
    [
        (lambda folder, _: (folder / "manifest.json").unlink(), MissingError, r"manifest\.json"),
        (
            lambda folder, _: (folder / "manifest.json").write_text("{"),
            InputError,
            r"expected JSON in .*manifest\.json",
        ),
        (
            lambda _, fields: fields.update(bse="STS12"),
            InputError,
            r"expected no field SmallSTS\.bse",
        ),
        (
            lambda _, fields: fields.pop("revision"),
            InputError,
            r"expected SmallSTS\.revision in .*, found none",
        ),
        (
            lambda _, fields: fields.update(base="STS1"),
            InputError,
            r"mteb knows as the base of SmallSTS, found 'STS1'; did you mean STS1\d",
        ),
        (
            lambda _, fields: fields.update(subsets=["fr"]),
            InputError,
            r"expected a name that STSBenchmark knows as a subset of SmallSTS, found 'fr'",
        ),
        (
            lambda folder, _: shutil.rmtree(folder / "data" / "SmallSTS"),
            MissingError,
            r"expected Parquet files of SmallSTS in .*, found none; copy them there",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    edit: Edit, kind: type[AnnaError], message: str, tmp_path: Path
) -> None:
    folder = write_small_tasks(tmp_path / "tasks", 20, ["SmallSTS"])
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(folder, manifest["SmallSTS"])
    if (folder / "manifest.json").is_file() and (folder / "manifest.json").read_text() != "{":
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(kind) as error:
        sources("quick", [], folder)
    assert re.search(message, str(error.value))


def test_data_of_another_layout_is_refused(tmp_path: Path) -> None:
    folder = write_small_tasks(tmp_path / "tasks", 20, ["SmallSTS"])
    (path,) = (folder / "data" / "SmallSTS").glob("*.parquet")
    path.write_bytes(b"no Parquet at all")
    with pytest.raises(InputError, match=r"expected data of STSBenchmark in mteb's layout"):
        load(*sources("quick", [], folder))


@pytest.mark.parametrize(
    ("name", "near"), [("banking77", "Banking77Classification"), ("STS-Benchmark", "STSBenchmark")]
)
def test_an_unknown_task_is_told_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"found '{name}'; did you mean .*{near}"):
        sources(None, [name], None)


def test_data_that_is_not_here_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        MissingError, match=r"TRECCOVID \(mteb/trec-covid at bb9466b\).*`task_data`"
    ):
        load(TaskSource("TRECCOVID"))
