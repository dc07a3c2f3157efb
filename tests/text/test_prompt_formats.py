"""Each family's words for prompts, as mteb evaluates its models with them."""

import inspect
from collections.abc import Callable
from typing import Any, get_args

import pytest
from mteb.models.model_implementations import (
    MODEL_REGISTRY,
    google_embeddinggemma,
    jina_models,
    nvidia_models,
    qwen3_models,
)
from mteb.types import PromptType

from anna_export.errors import InputError
from anna_export.text.prompt_formats import (
    FORMATS,
    Example,
    FormatName,
    format_of,
    instruction_format,
    instruction_formats,
)
from anna_export.text.prompts import NO_PROMPT, Prompt, Prompts
from tests.support.refusals import refusal

# a loader of their own has the words in these
TEMPLATES: dict[str, Any] = {
    "Qwen/Qwen3-Embedding-0.6B": qwen3_models.instruction_template,
    "nvidia/llama-embed-nemotron-8b": nvidia_models.LlamaEmbedNemotron._instruction_template,
}
MODELS: list[tuple[FormatName, str]] = [
    ("e5", "intfloat/e5-mistral-7b-instruct"),
    ("e5", "Salesforce/SFR-Embedding-2_R"),
    ("e5", "Linq-AI-Research/Linq-Embed-Mistral"),
    ("e5", "Alibaba-NLP/gte-Qwen2-1.5B-instruct"),
    ("e5", "codefuse-ai/F2LLM-v2-0.6B"),
    ("e5", "nvidia/llama-embed-nemotron-8b"),
    ("qwen3", "Qwen/Qwen3-Embedding-0.6B"),
    ("qwen3", "Octen/Octen-Embedding-0.6B"),
    ("qwen3", "microsoft/harrier-oss-v1-270m"),
    ("qwen3", "BidirLM/BidirLM-0.6B-Embedding"),
    ("kalm", "HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v2"),
    ("kalm", "tencent/KaLM-Embedding-Gemma3-12B-2511"),
    ("reasonir", "ReasonIR/ReasonIR-8B"),
]


def mtebs(model: str, instruction: str, side: PromptType) -> str:
    template = TEMPLATES.get(model) or MODEL_REGISTRY[model].loader_kwargs["instruction_template"]
    if isinstance(template, str):
        return template.format(instruction=instruction)
    return str(template(instruction, side))


@pytest.mark.parametrize(("name", "model"), MODELS)
def test_instructions_are_worded_as_mteb_words_them(name: FormatName, model: str) -> None:
    instruction = "Given a {query}, find\nwhat answers it."
    prompt = FORMATS[name].prompt(instruction)
    assert prompt == Prompt(mtebs(model, instruction, PromptType.query))


def test_documents_of_reasonir_are_worded_as_mteb_words_them() -> None:
    words = mtebs("ReasonIR/ReasonIR-8B", "", PromptType.document)
    assert FORMATS["reasonir"].document == words


def test_fixed_words_are_those_of_mtebs_wrappers() -> None:
    jina = inspect.getsource(jina_models.JinaV5TextWrapper)
    for words in (FORMATS["jina"].query, FORMATS["jina"].document):
        assert f'"{words}"' in jina
    # of embeddinggemma-2, whose prompts are as those of the first
    gemma = inspect.getsource(google_embeddinggemma.EmbeddingGemma2Wrapper)
    assert f'f"{FORMATS["embeddinggemma"].query}' in gemma
    assert FORMATS["embeddinggemma"].document.replace("none", "{t.strip() or 'none'}") in gemma


def test_every_format_has_a_name_that_a_file_may_write() -> None:
    assert get_args(FormatName) == tuple(FORMATS)


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        (lambda: FORMATS["e5"].prompt(), "expected an instruction in"),
        (lambda: FORMATS["jina"].prompt("Find it."), "expected no instruction in"),
        (
            lambda: FORMATS["nemotron"].prompt(None, [Example("a", "b")]),
            "expected neither examples",
        ),
        (lambda: FORMATS["reasonir"].prompt("i", (), True), "expected neither examples"),
    ],
)
def test_parts_that_a_format_lacks_are_refused(act: Callable[[], object], problem: str) -> None:
    assert problem in refusal(InputError, act)


@pytest.mark.parametrize("name", FORMATS)
def test_format_is_known_by_the_prompts_of_a_model(name: FormatName) -> None:
    words = FORMATS[name]
    query = words.prompt("Find it." if words.takes_instruction else None)
    prompts = Prompts({"other": Prompt("say: "), "query": query, "bare": NO_PROMPT})
    assert format_of(prompts) == name
    takes = name in instruction_formats()
    assert instruction_format(prompts) == (name if takes else "e5")


def test_format_is_known_behind_examples() -> None:
    prompt = FORMATS["qwen3"].prompt("Find it.", [Example("a", "b")])
    assert format_of(Prompts({"sts": prompt})) == "qwen3"


def test_prompts_of_no_format_have_none() -> None:
    assert format_of(Prompts()) is None
    assert format_of(Prompts.of_fronts({"query": "find: "})) is None
