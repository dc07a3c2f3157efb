"""The exact text that stands in front of a task's texts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest

from anna_export import mteb_model
from anna_export.artifact.folder import Artifact
from anna_export.errors import InputError, MissingError
from anna_export.text.prompts import NO_PROMPT, Prompt, Prompts
from anna_export.verify.task_data import BENCHMARK, load, sources
from anna_export.verify.task_prompts import TaskPrompts, find_prompt, read_task_prompts, shipped

NONE = Prompts()


def front(instruction: str) -> Prompt:
    return Prompt(f"Instruct: {instruction}\nQuery: ")


def test_every_task_and_type_of_the_benchmark_has_a_prompt_and_mtebs_own_where_it_gives_one() -> (
    None
):
    count = 0
    for task in mteb.get_benchmark(BENCHMARK).tasks:
        mtebs = task.metadata.prompt
        instruction = mtebs.get("query") if isinstance(mtebs, dict) else mtebs
        prompt = shipped("e5").by_name[task.metadata.name]
        assert task.metadata.type in shipped("e5").by_name and prompt.back == ""
        if instruction:
            count += 1
            assert prompt == front(instruction)
    assert count == 23


@pytest.mark.parametrize(
    ("task", "kind", "side", "expected"),
    [
        ("STS12", "STS", None, front("Retrieve semantically similar text.")),
        (
            "Banking77Classification",
            "Classification",
            None,
            front("Given a online banking query, find the corresponding intents"),
        ),
        (
            "TRECCOVID",
            "Retrieval",
            "query",
            front("Given a query on COVID-19, retrieve documents that answer the query"),
        ),
        ("TRECCOVID", "Retrieval", "document", NO_PROMPT),
        ("AskUbuntuDupQuestions", "Reranking", "document", NO_PROMPT),
        (
            "Unheard",
            "Retrieval",
            "query",
            front("Given a query, retrieve passages that answer it"),
        ),
        ("Unheard", "Unheard", None, NO_PROMPT),
    ],
)
def test_shipped_prompts_by_name_then_type(
    task: str, kind: str, side: str | None, expected: Prompt
) -> None:
    assert find_prompt(task, kind, side, NONE) == expected


def test_shipped_prompts_are_worded_as_the_models_own() -> None:
    qwen3 = Prompts.of_fronts({"query": "Instruct: Find it.\nQuery:", "document": ""})
    words = "Instruct: Retrieve semantically similar text.\nQuery:"
    assert find_prompt("STS12", "STS", None, qwen3) == Prompt(words)
    # a model that was trained without instructions has none
    nemotron = Prompts.of_fronts({"query": "query: ", "document": "passage: "})
    assert find_prompt("STS12", "STS", None, nemotron) == NO_PROMPT
    assert find_prompt("FiQA2018", "Retrieval", "document", nemotron) == Prompt("passage: ")


def test_the_artifacts_own_prompts_come_first() -> None:
    baked = Prompts(
        {
            "sts12": Prompt("own: "),
            "sts": Prompt("like: "),
            "query": Prompt("q: "),
            "document": Prompt("d: "),
            "trec": Prompt("t: "),
            "treccovid": Prompt("covid: "),
        },
        documents={"treccovid": "trec", "query": ""},
    )
    users = TaskPrompts(Prompts({"STS12": Prompt("given: "), "Clustering": Prompt("c: ")}))
    assert find_prompt("STS12", "STS", None, baked, users) == Prompt("own: ")
    assert find_prompt("STS13", "STS", None, baked, users) == Prompt("like: ")
    assert find_prompt("STS12", "STS", None, NONE, users) == Prompt("given: ")
    assert find_prompt("X", "Clustering", None, baked, users) == Prompt("c: ")
    assert find_prompt("FiQA2018", "Retrieval", "query", baked) == Prompt("q: ")
    # documents as they are, because the prompt for queries says so
    assert find_prompt("FiQA2018", "Retrieval", "document", baked) == NO_PROMPT
    assert find_prompt("TRECCOVID", "Retrieval", "query", baked) == Prompt("covid: ")
    assert find_prompt("TRECCOVID", "Retrieval", "document", baked) == Prompt("t: ")
    plain = Prompts({"query": Prompt("q: "), "document": Prompt("d: ")})
    assert find_prompt("TRECCOVID", "Retrieval", "document", plain) == Prompt("d: ")


def test_none_is_no_prompt_for_any_text() -> None:
    none = read_task_prompts(Path("none"))
    assert find_prompt("STS12", "STS", None, Prompts({"sts": Prompt("s: ")}), none) == NO_PROMPT


def test_a_users_file_is_read_and_its_mistakes_are_told(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"tasks": {"STS12": {"text": "s: "}}}))
    users = read_task_prompts(path)
    assert find_prompt("STS12", "STS", None, NONE, users) == Prompt("s: ")
    path.write_text(json.dumps({"tasks": {"STS12": {"txt": "s: "}}}))
    with pytest.raises(InputError, match=r"expected no field tasks\.STS12\.txt in"):
        read_task_prompts(path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"expected JSON in"):
        read_task_prompts(path)
    with pytest.raises(MissingError, match=r'"none" is for none'):
        read_task_prompts(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("name", "fronts"),
    [
        ("SmallSTS", {"Instruct: Retrieve semantically similar text.\nQuery: "}),
        (
            "SmallRetrieval",
            {"", "Instruct: Given a query, retrieve passages that answer it\nQuery: "},
        ),
    ],
)
def test_the_string_that_reaches_the_model_through_mteb(
    name: str,
    fronts: set[str],
    artifact: Artifact,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """By the public way: mteb.evaluate(anna_export.mteb_model(artifact), tasks)."""
    model = mteb_model(artifact.folder)
    prompt_fronts: set[str] = set()
    tokenise: Callable[..., list[list[int]]] = model.embed.__self__.tokeniser.ids  # type: ignore[attr-defined]

    def ids(texts: list[str], prompt: Prompt = NO_PROMPT) -> list[list[int]]:
        prompt_fronts.add(prompt.front)
        return tokenise(texts, prompt)

    monkeypatch.setattr(model.embed.__self__.tokeniser, "ids", ids)  # type: ignore[attr-defined]
    task = load(*sources("quick", [name], small))
    result: Any = mteb.evaluate(model, task, cache=mteb.ResultCache(tmp_path), co2_tracker=False)
    assert np.isfinite(result.task_results[0].get_score()) and prompt_fronts == fronts
    (path,) = tmp_path.glob(f"results/anna-export__*/{artifact.manifest.artifact_id}/{name}.json")
    assert json.loads(path.read_text())["task_name"] == name
