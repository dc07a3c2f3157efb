"""Which of a prompt's tokens every text starts with, and which a text merges with."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anna_export.text.prompts import NO_PROMPT, Prompt
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.texts import ODD_TEXTS
from tests.support.types import MakeArtifact

MANY_EXAMPLES = settings(max_examples=300, derandomize=True, deadline=None)
PROMPTS = (
    Prompt("Query: "),
    Prompt("Query:"),
    Prompt("Instruct: Find like.\nQuery: "),
    Prompt("<instruct>Find like.\n<query>", "\n<response>"),
    Prompt("end in a newline\n"),
    Prompt("", " behind"),
    Prompt("漢字 "),
    Prompt("ends in a half wor"),
)
BORDER = 8


@pytest.fixture(scope="module")
def tokeniser(base: Path, make_artifact: MakeArtifact) -> Tokeniser:
    return make_artifact(base, max_tokens=256).tokeniser()


def shared(first: list[int], second: list[int]) -> int:
    return next(
        (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )


# the last one's half a word may merge with any letter
@pytest.mark.parametrize("prompt", PROMPTS[:-1], ids=repr)
@pytest.mark.parametrize("text", ODD_TEXTS, ids=repr)
def test_odd_texts_start_with_the_prefix(tokeniser: Tokeniser, prompt: Prompt, text: str) -> None:
    front = tokeniser.prefix_ids(prompt)
    (row,) = tokeniser.ids([text], prompt)
    assert row[: len(front)] == front and len(row) > len(front)


@MANY_EXAMPLES
@given(text=st.text(max_size=40), prompt=st.sampled_from(PROMPTS))
@example(text="d is the end", prompt=PROMPTS[-1])
@example(text="\n\n\n", prompt=PROMPTS[4])
@example(text="        spaces", prompt=PROMPTS[0])
def test_any_text_shares_all_but_a_few_of_its_tokens(
    tokeniser: Tokeniser, text: str, prompt: Prompt
) -> None:
    front = tokeniser.prefix_ids(prompt)
    (row,) = tokeniser.ids([text], prompt)
    assert shared(row, front) >= len(front) - BORDER


def test_end_that_merges_with_texts_is_left_out(tokeniser: Tokeniser) -> None:
    space = tokeniser.ids(["Query: "])[0][-2]
    assert tokeniser.ids([""], Prompt("Query: "))[0][-2] == space
    # "▁" alone becomes a part of the next word
    assert tokeniser.prefix_ids(Prompt("Query: ")) == tokeniser.prefix_ids(Prompt("Query:"))


def test_no_prompt_leaves_the_start_token(tokeniser: Tokeniser) -> None:
    assert tokeniser.prefix_ids(NO_PROMPT) == [tokeniser.framing.bos_id]


def test_something_is_left_to_compute(tokeniser: Tokeniser) -> None:
    for prompt in PROMPTS:
        (row,) = tokeniser.ids([""], prompt)
        front = tokeniser.prefix_ids(prompt)
        assert len(front) < len(row) and tokeniser.framing.eos_id not in front
