"""From a request's texts and token ids to items of the queue: no server, no weights."""

from pathlib import Path
from typing import Any

import pytest

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.prefixes import StoredPrefixes
from anna_export.serve.config import ServerConfig
from anna_export.serve.queue_item import QueueItem
from anna_export.serve.refusal import Refusal
from anna_export.serve.request_tokeniser import RequestTokeniser
from anna_export.serve.schema import OpenAIRequest, TeiRequest, TokenizeRequest
from anna_export.text.prompt_formats import FORMATS
from anna_export.text.prompts import Prompt

DATA = Path(__file__).parents[1] / "data" / "schema2"
MAX_TOKENS, VOCABULARY, DIM = 128, 600, 32
BOS, EOS = 1, 2
LONG = "word " * 200


@pytest.fixture(scope="module")
def served() -> Artifact:
    """Prompts "sts", the default, whose documents have "passage"; both have cached prefixes."""
    return open_artifact(DATA / "artifact-fp32")


@pytest.fixture(scope="module")
def tokeniser(served: Artifact) -> RequestTokeniser:
    config = ServerConfig("small", max_inputs=5, max_request_tokens=300)
    return RequestTokeniser(served, config)


def prompt_of(served: Artifact, name: str) -> Prompt:
    return served.manifest.prompts.find(name)


def all_ids(served: Artifact, item: QueueItem) -> list[int]:
    """Return an item's token ids with those of its prefix."""
    prefixes = StoredPrefixes(served).ids
    prefix = [] if item.prompt is None else prefixes[item.prompt][: item.cached_tokens]
    return [*prefix, *item.ids]


def openai(**fields: Any) -> OpenAIRequest:
    return OpenAIRequest.model_validate(fields)


def tei(**fields: Any) -> TeiRequest:
    return TeiRequest.model_validate(fields)


def tokenize(**fields: Any) -> TokenizeRequest:
    return TokenizeRequest.model_validate(fields)


def refusal(tokeniser: RequestTokeniser, **fields: Any) -> Refusal:
    with pytest.raises(Refusal) as refused:
        tokeniser.read(openai(**fields))
    return refused.value


# -- texts --


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "sts"),
        ({"prompt_name": "passage"}, "passage"),
        ({"input_type": "query"}, "sts"),
        ({"input_type": "document"}, "passage"),
    ],
    ids=["default", "by name", "query", "document"],
)
def test_a_text_with_a_prompt_is_split_after_its_cached_prefix(
    served: Artifact, tokeniser: RequestTokeniser, fields: dict[str, str], name: str
) -> None:
    prompt = prompt_of(served, name)
    (item,) = tokeniser.read(openai(input="a text", **fields)).items
    assert item.prompt == prompt and item.cached_tokens == len(StoredPrefixes(served).ids[prompt])
    assert all_ids(served, item) == served.tokeniser().ids(["a text"], prompt)[0]
    assert item.tokens == len(all_ids(served, item))


def test_a_text_without_a_prompt_has_no_prefix(
    served: Artifact, tokeniser: RequestTokeniser
) -> None:
    (item,) = tokeniser.read(openai(input="a text", prompt_name="")).items
    (ids,) = served.tokeniser().ids(["a text"])
    assert item == QueueItem(tuple(ids))


def test_an_instruction_is_worded_as_the_format_does(
    served: Artifact, tokeniser: RequestTokeniser
) -> None:
    request = openai(input="a text", instruction="Find the answer.")
    (item,) = tokeniser.read(request).items
    prompt = FORMATS["e5"].prompt("Find the answer.")
    assert item == QueueItem(tuple(served.tokeniser().ids(["a text"], prompt)[0]))


def test_items_are_in_the_order_of_the_texts_and_counted(
    served: Artifact, tokeniser: RequestTokeniser
) -> None:
    texts = ["one text", "a", "one text"]
    request = tokeniser.read(tei(inputs=texts))
    rows = served.tokeniser().ids(texts, prompt_of(served, "sts"))
    assert [all_ids(served, item) for item in request.items] == rows
    assert request.tokens == sum(map(len, rows)) and request.truncated == 0
    assert request.cached_tokens == 3 * request.items[0].cached_tokens > 0


def test_a_text_that_is_too_long_is_refused_by_its_index(tokeniser: RequestTokeniser) -> None:
    error = refusal(tokeniser, input=["a", LONG], prompt_name="")
    assert (error.code, error.param) == ("text_too_long", "input.1")
    assert error.message.startswith("expected at most 128 tokens a text, prompt included, found")
    assert error.message.endswith("; shorten it, or send truncate: true")


def test_a_text_that_is_too_long_is_truncated_where_the_request_says_so(
    served: Artifact, tokeniser: RequestTokeniser
) -> None:
    request = tokeniser.read(tei(inputs=["a", LONG], truncate=True))
    assert request.truncated == 1
    ids = all_ids(served, request.items[1])
    assert len(ids) == MAX_TOKENS and ids[0] == BOS and ids[-1] == EOS


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": []}, "input", "expected at least one text, found none"),
        (
            {"input": ["a"] * 6},
            "input",
            "expected at most 5 texts, found 6; send them in several requests",
        ),
        (
            {"input": [LONG] * 3, "truncate": True},
            "input",
            "expected at most 300 tokens in a request, found 384; send the texts in several "
            "requests",
        ),
        ({"input": "a", "dimensions": DIM + 1}, "dimensions", "at most 32 dimensions, found 33"),
        (
            {"input": "a", "prompt_name": "no"},
            "prompt_name",
            "expected a known prompt (passage, sts), found 'no'",
        ),
        (
            {"input": "a", "prompt_name": "sts", "instruction": "b"},
            "prompt_name",
            "expected one of prompt_name, input_type and instruction, found prompt_name and "
            "instruction",
        ),
        ({"input": "a", "instruction": LONG}, "input", "expected a prompt shorter than 126 tokens"),
    ],
    ids=["none", "many texts", "many tokens", "dimensions", "prompt", "two prompts", "no room"],
)
def test_a_request_beyond_a_limit_or_without_a_meaning_is_refused(
    tokeniser: RequestTokeniser, fields: dict[str, Any], param: str, message: str
) -> None:
    error = refusal(tokeniser, **fields)
    assert error.status(openai=True) == 400 and error.status(openai=False) == 422
    assert error.param == param and message in error.message


def test_limits_are_the_most_that_is_allowed(tokeniser: RequestTokeniser) -> None:
    request = openai(input=["a"] * 5, dimensions=DIM, prompt_name="")
    assert len(tokeniser.read(request).items) == 5


# -- token ids --


def test_token_ids_are_used_as_they_are(tokeniser: RequestTokeniser) -> None:
    row, other = [BOS, 5, 6, EOS], [BOS, VOCABULARY - 1, EOS]
    assert tokeniser.read(openai(input=row)).items == [QueueItem(tuple(row))]
    request = tokeniser.read(openai(input=[row, other, [BOS, EOS]]))
    assert request.items == [QueueItem(tuple(row)), QueueItem(tuple(other)), QueueItem((BOS, EOS))]


@pytest.mark.parametrize(
    "row",
    [[5, 6, 7], [BOS, 5], [5, EOS], [BOS], [EOS], [EOS, BOS]],
    ids=["neither", "no end", "no begin", "begin alone", "end alone", "turned round"],
)
def test_token_ids_that_this_models_tokenizer_cannot_have_made_are_refused(
    tokeniser: RequestTokeniser, row: list[int]
) -> None:
    error = refusal(tokeniser, input=[[BOS, 5, EOS], row])
    assert (error.code, error.param) == ("foreign_token_ids", "input.1")
    assert error.message == (
        "expected token ids of this model's tokenizer, which begin with 1 (<s>) and end with "
        f"2 (</s>), found ids from {row[0]} to {row[-1]}, as of another one; send texts "
        "(LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False), or "
        "add_special_tokens: true with ids of this tokenizer"
    )


def test_special_tokens_are_put_around_token_ids_where_the_request_says_so(
    tokeniser: RequestTokeniser,
) -> None:
    request = openai(input=[5, 6], add_special_tokens=True)
    assert tokeniser.read(request).items == [QueueItem((BOS, 5, 6, EOS))]


def test_token_ids_that_start_with_a_prompt_are_split_after_its_cached_prefix(
    served: Artifact, tokeniser: RequestTokeniser
) -> None:
    prompt = prompt_of(served, "sts")
    (row,) = served.tokeniser().ids(["a text"], prompt)
    (item,) = tokeniser.read(openai(input=row)).items
    assert item.prompt == prompt and all_ids(served, item) == row


@pytest.mark.parametrize("framed", [False, True], ids=["as they are", "with special tokens"])
def test_token_ids_that_are_too_long_are_refused_or_truncated(
    tokeniser: RequestTokeniser, framed: bool
) -> None:
    limit = MAX_TOKENS - 2 * framed
    row = list(range(5, limit + 6)) if framed else [BOS, *range(5, limit + 4), EOS]
    least = [5] if framed else [BOS, 5, EOS]
    options: dict[str, Any] = {"add_special_tokens": framed}
    error = refusal(tokeniser, input=[least, row], **options)
    assert (error.code, error.param) == ("text_too_long", "input.1")
    assert f"expected at most {limit} token ids, found {limit + 1}" in error.message
    del row[5]
    assert tokeniser.read(openai(input=[row], **options)).truncated == 0
    row.insert(5, 9)
    (item,) = (request := tokeniser.read(openai(input=[row], truncate=True, **options))).items
    assert request.truncated == 1 and request.tokens == MAX_TOKENS
    # the model reads its vector from the end token
    assert (item.ids[0], item.ids[-1]) == (BOS, EOS)
    assert item.ids[1:-1] == tuple(row if framed else row[1:])[: MAX_TOKENS - 2]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": [[BOS, EOS], []]}, "input.1", "expected token ids, found none"),
        (
            {"input": [[BOS, 600, EOS]]},
            "input.0",
            "expected token ids from 0 to 599, found 600, an id of another tokenizer; send texts",
        ),
        ({"input": [5], "prompt_name": "sts"}, "input", "expected texts behind a prompt"),
        ({"input": [5], "instruction": "a"}, "input", "expected texts behind a prompt"),
        ({"input": [5], "prompt_name": "no"}, "prompt_name", "expected a known prompt"),
    ],
    ids=["empty", "vocabulary", "prompt", "instruction", "unknown prompt"],
)
def test_token_ids_that_have_no_meaning_are_refused(
    tokeniser: RequestTokeniser, fields: dict[str, Any], param: str, message: str
) -> None:
    error = refusal(tokeniser, **fields)
    assert error.param == param and message in error.message


def test_token_ids_may_say_that_they_have_no_prompt(tokeniser: RequestTokeniser) -> None:
    request = openai(input=[BOS, 5, EOS], prompt_name="")
    assert tokeniser.read(request).items == [QueueItem((BOS, 5, EOS))]


# -- /tokenize --


def test_tokens_of_a_text_are_named_and_special_ones_marked(
    served: Artifact, tokeniser: RequestTokeniser
) -> None:
    (tokens,) = tokeniser.tokens(tokenize(inputs="a text", prompt_name="passage"))
    (ids,) = served.tokeniser().ids(["a text"], prompt_of(served, "passage"))
    assert [token["id"] for token in tokens] == ids
    assert [token["special"] for token in tokens] == [True, *[False] * (len(ids) - 2), True]
    request = tokenize(inputs="a text", prompt_name="passage", add_special_tokens=False)
    assert tokeniser.tokens(request) == [tokens[1:-1]]


def test_tokens_of_too_many_texts_and_of_no_prompt_are_refused(
    tokeniser: RequestTokeniser,
) -> None:
    for request, message in (
        (tokenize(inputs=["a"] * 6), "expected at most 5 texts, found 6"),
        (tokenize(inputs="a", prompt_name="no"), "expected a known prompt"),
    ):
        with pytest.raises(Refusal) as refused:
            tokeniser.tokens(request)
        assert refused.value.message.startswith(message) and refused.value.param == "inputs"
