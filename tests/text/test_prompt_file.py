"""prompts.json: what each format puts around a text, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anna_export.errors import InputError, MissingError
from anna_export.text.prompt_file import find_prompts, read_prompt_file
from anna_export.text.prompts import NO_PROMPT, Prompt, Prompts

Read = Callable[..., Prompts]
SHOTS = [{"query": "a dog", "response": "a hound"}, {"query": "a cat", "response": "a tom"}]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a file of these tasks; other keys stand beside them."""

    def write(tasks: Any, **beside: Any) -> Prompts:
        path = tmp_path / "prompts.json"
        path.write_text(json.dumps({"tasks": tasks, **beside}))
        return read_prompt_file(path)

    return write


def refusal(act: Callable[[], object], kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as error:
        act()
    message = str(error.value)
    assert message.startswith("expected ") and "found" in message and "\n" not in message
    return message


# -- what stands around a text --


def test_e5_names_instruction_and_query(read: Read) -> None:
    prompts = read({"sts": {"format": "e5", "instruction": "Find like."}})
    assert prompts.find("sts") == Prompt("Instruct: Find like.\nQuery: ")


def test_examples_stand_in_front_each_with_the_instruction(read: Read) -> None:
    task = {"format": "e5", "instruction": "Find like.", "examples": SHOTS}
    assert read({"sts": task}).find("sts") == Prompt(
        "Instruct: Find like.\nQuery: a dog\nResponse: a hound\n\n"
        "Instruct: Find like.\nQuery: a cat\nResponse: a tom\n\n"
        "Instruct: Find like.\nQuery: "
    )


def test_bge_en_icl_writes_tokens_and_asks_for_the_response(read: Read) -> None:
    task = {"format": "bge-en-icl", "instruction": "Find like.", "examples": SHOTS[:1]}
    assert read({"sts": task}).find("sts") == Prompt(
        "<instruct>Find like.\n<query>a dog\n<response>a hound\n\n<instruct>Find like.\n<query>",
        "\n<response>",
    )


def test_whether_the_response_is_asked_for_can_be_said(read: Read) -> None:
    e5 = {"format": "e5", "instruction": "i", "response_suffix": True}
    icl = {"format": "bge-en-icl", "instruction": "i", "response_suffix": False}
    prompts = read({"e5": e5, "icl": icl})
    assert prompts.find("e5").back == "\nResponse:" and prompts.find("icl").back == ""


def test_plain_text_is_taken_as_it_is(read: Read) -> None:
    prompts = read({"passage": {"text": "passage: "}, "bare": {"text": ""}})
    assert prompts.find("passage") == Prompt("passage: ") and prompts.find("bare") == NO_PROMPT


def test_default_and_prompts_of_documents_are_read(read: Read) -> None:
    tasks = {
        "query": {"format": "e5", "instruction": "i", "documents": "passage"},
        "sts": {"format": "e5", "instruction": "s", "documents": "sts"},
        "code": {"format": "e5", "instruction": "c", "documents": ""},
        "passage": {"text": "passage: "},
    }
    prompts = read(tasks, default="sts")
    assert prompts.find(None) == prompts.find("sts") != NO_PROMPT
    assert prompts.documents == {"query": "passage", "sts": "sts", "code": ""}


def test_documents_may_have_the_formats_words(read: Read) -> None:
    tasks = {
        "query": {"format": "nemotron", "documents": "passage"},
        "passage": {"format": "nemotron", "document": True},
        "search": {"format": "embeddinggemma", "instruction": "search result"},
    }
    fronts = {"query": "query: ", "passage": "passage: ", "search": "task: search result | query: "}
    assert read(tasks).fronts() == fronts


# -- what is refused --

TASK = {"format": "e5", "instruction": "i"}


@pytest.mark.parametrize(
    ("tasks", "beside", "pattern"),
    [
        ([], {}, "tasks"),
        ({"sts": "find"}, {}, "tasks.sts"),
        ({"sts": {**TASK, "instruction": 3}}, {}, "tasks.sts.instruction"),
        ({"sts": {**TASK, "instruction": ""}}, {}, "tasks.sts.instruction"),
        ({"sts": {**TASK, "format": "e6"}}, {}, "tasks.sts.format"),
        ({"sts": {"format": "e5"}}, {}, "tasks.sts.instruction"),
        ({"sts": {**TASK, "shots": []}}, {}, "tasks.sts.shots"),
        ({"sts": {**TASK, "examples": [*SHOTS, {"query": "q"}]}}, {}, "examples.2.response"),
        ({"sts": {"instruction": "i"}}, {}, "tasks.sts in .* found neither"),
        ({"sts": {**TASK, "text": "t"}}, {}, "tasks.sts in .* found both"),
        ({"sts": {"text": "t", "examples": SHOTS}}, {}, "text alone"),
        ({"sts": {"text": "t", "response_suffix": True}}, {}, "text alone"),
        ({"sts": {"text": "t", "document": True}}, {}, "text alone"),
        ({"sts": {"format": "jina", "instruction": "i"}}, {}, r"no tasks\.sts\.instruction"),
        ({"sts": {"format": "jina", "examples": SHOTS}}, {}, "neither examples nor"),
        ({"sts": {"format": "jina", "response_suffix": False}}, {}, "neither examples nor"),
        ({"sts": {"format": "e5", "document": True}}, {}, "has no words for documents"),
        (
            {"sts": {"format": "reasonir", "document": True, "instruction": "i"}},
            {},
            r"no tasks\.sts\.instruction",
        ),
        ({"STS": TASK}, {}, "found 'STS'"),
        ({"": TASK}, {}, "found ''"),
        ({"../sts": TASK}, {}, "found '../sts'"),
        ({"sts": {**TASK, "documents": "passage"}}, {}, "documents of 'sts'.*found 'passage'"),
        ({"sts": TASK}, {"default": "query"}, "default prompt.*found 'query'"),
        ({"sts": TASK}, {"version": 2}, "version"),
        ({"sts": {"text": "a\ud800"}}, {}, "lone surrogate in 'sts'"),
        ({"a": TASK, "b": {**TASK, "response_suffix": True}}, {}, "differs from another"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_wrong_field_is_named(read: Read, tasks: Any, beside: dict[str, Any], pattern: str) -> None:
    message = refusal(lambda: read(tasks, **beside))
    assert "prompts.json" in message
    with pytest.raises(InputError, match=pattern):
        raise InputError(message)


def test_line_of_a_slip_in_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text('{"tasks":\n  {"sts": {"text": "a"},\n   }}')
    assert "in line 3" in refusal(lambda: read_prompt_file(path))


def test_task_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text('{"tasks": {"sts": {"text": "a"}, "sts": {"text": "b"}}}')
    assert "found 'sts' twice" in refusal(lambda: read_prompt_file(path))


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"[]", b"3", b""])
def test_file_that_is_no_object_in_utf_8_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompts.json"
    path.write_bytes(content)
    assert "prompts.json" in refusal(lambda: read_prompt_file(path))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    refusal(lambda: read_prompt_file(tmp_path / "prompts.json"), MissingError)


def test_prompts_json_beside_an_adapter_says_more_than_its_other_file(tmp_path: Path) -> None:
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    for folder, front in ((model, "base: "), (adapter, "tuned: ")):
        folder.mkdir()
        config = {"prompts": {"query": front}}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    assert find_prompts(model, None).find("query") == Prompt("base: ")
    assert find_prompts(model, adapter).find("query") == Prompt("tuned: ")
    task = {"format": "bge-en-icl", "instruction": "Find it."}
    (adapter / "prompts.json").write_text(json.dumps({"tasks": {"query": task}}))
    assert find_prompts(model, adapter).find("query").back == "\n<response>"
