"""Text to token ids to batches: the contract that training, export and serving share."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anna_export.errors import InputError, MissingError
from anna_export.files.json_file import read_json
from anna_export.spec import EmbeddingSpec, read_spec
from anna_export.text.framing import CONFIG_FILE, TokenFraming, read_framing
from anna_export.text.limit import LIMIT_FILE
from anna_export.text.prompts import Prompt, Prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.texts import ODD_TEXTS, ordinary_texts
from tests.support.refusals import one_line

BOS, EOS = 1, 2
FAST = settings(max_examples=60, derandomize=True, deadline=None)
# every character but surrogates, which no valid text has
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)

Edit = Callable[[tokenizers.Tokenizer], object]


@pytest.fixture(scope="module")
def spec(base: Path) -> EmbeddingSpec:
    return read_spec(base)


@pytest.fixture(scope="module")
def framing(base: Path, spec: EmbeddingSpec) -> TokenFraming:
    return read_framing(base, spec, 21)


@pytest.fixture(scope="module")
def tokeniser(base: Path, framing: TokenFraming) -> Tokeniser:
    return Tokeniser.open(base, framing)


@pytest.fixture(scope="module")
def roomy(base: Path, spec: EmbeddingSpec) -> Tokeniser:
    """Cuts nothing that the tests write."""
    return Tokeniser.open(base, read_framing(base, spec, 4096))


@pytest.fixture
def changed(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies the tokenizer folder with another tokenizer.json, or other settings; None removes."""

    def copy(edit: Edit | None = None, **settings: Any) -> Path:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(base / name, tmp_path / name)
        if edit is not None:
            tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
            edit(tokenizer)
            tokenizer.save(str(tmp_path / "tokenizer.json"))
        config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | settings
        stated = {name: value for name, value in config.items() if value is not None}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
        return tmp_path

    return copy


# -- special tokens of a prompt --

ICL = Prompt("<instruct>Find it.\n<query>", "\n<response>")
ICL_TOKENS = ("<instruct>", "<query>", "<response>")


@pytest.fixture(scope="module")
def icl(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with bge-en-icl's three tokens more."""
    folder = tmp_path_factory.mktemp("icl")
    theirs = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
    theirs.add_special_tokens(list(ICL_TOKENS))
    theirs.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def icl_theirs(icl: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(icl / "tokenizer.json"))


@pytest.fixture(scope="module")
def icl_short(icl: Path, framing: TokenFraming) -> Tokeniser:
    return Tokeniser.open(icl, replace(framing, split_special_tokens=False))


@pytest.fixture(scope="module")
def icl_roomy(icl: Path, framing: TokenFraming) -> Tokeniser:
    return Tokeniser.open(icl, replace(framing, max_tokens=4096, split_special_tokens=False))


@pytest.mark.parametrize("text", [text for text in ordinary_texts(9)] + ["", " a", "\n", "漢字 b"])
def test_prompt_with_special_tokens_has_the_tokenizers_own_ids(
    icl_roomy: Tokeniser, icl_theirs: tokenizers.Tokenizer, text: str
) -> None:
    expected = icl_theirs.encode(f"{ICL.front}{text}{ICL.back}", add_special_tokens=False)
    assert icl_roomy.ids([text], ICL) == [[BOS, *expected.ids, EOS]]
    assert set(ICL_TOKENS) <= set(expected.tokens)


@FAST
@given(before=TEXT, after=TEXT, name=st.sampled_from([*ICL_TOKENS, "<s>", "</s>", "<unk>"]))
def test_special_token_written_in_a_text_behind_a_prompt_that_has_some_is_plain_text(
    icl_roomy: Tokeniser, icl_theirs: tokenizers.Tokenizer, before: str, after: str, name: str
) -> None:
    special = icl_theirs.token_to_id(name)
    assert special is not None
    (ids,) = icl_roomy.ids([f"{before}{name}{after}"], ICL)
    (plain,) = icl_roomy.ids([f"{before}{after}"], ICL)
    assert ids.count(special) == plain.count(special)


@FAST
@given(text=TEXT)
def test_truncated_text_keeps_what_stands_behind_it(
    icl_short: Tokeniser, icl_roomy: Tokeniser, text: str
) -> None:
    (truncated,), (complete,) = icl_short.ids([text * 9], ICL), icl_roomy.ids([text * 9], ICL)
    assert len(truncated) == min(len(complete), 21)
    # the line's end, its token, and the end of all
    assert truncated[-3:] == complete[-3:]
    assert truncated[:-3] == complete[: len(truncated) - 3]


# -- framing --


@FAST
@given(text=TEXT, prompt=TEXT, back=TEXT)
@example(text="a</s>b<s>", prompt="<s>c</s>", back="d</s>")
def test_bos_stands_first_and_eos_once_and_last_whatever_the_text(
    roomy: Tokeniser, text: str, prompt: str, back: str
) -> None:
    (ids,) = roomy.ids([text], Prompt(prompt, back))
    assert ids[0] == BOS and ids[-1] == EOS
    assert ids.count(BOS) == 1 and ids.count(EOS) == 1


@FAST
@given(text=TEXT)
def test_cut_text_keeps_its_start_and_eos_and_fits(
    tokeniser: Tokeniser, roomy: Tokeniser, text: str
) -> None:
    (truncated,), (complete,) = tokeniser.ids([text]), roomy.ids([text])
    assert len(truncated) == min(len(complete), 21)
    assert truncated[:-1] == complete[: len(truncated) - 1] and truncated[-1] == EOS


@FAST
@given(text=TEXT)
def test_cut_text_keeps_the_whole_prompt(tokeniser: Tokeniser, roomy: Tokeniser, text: str) -> None:
    prompt = "Instruct: find it\nQuery: "
    # without the prompt's last space, which joins the text's first word
    (framed,) = roomy.ids([prompt.rstrip()])
    (ids,) = tokeniser.ids([text * 9], Prompt(prompt))
    assert ids[: len(framed) - 1] == framed[:-1]
    assert len(ids) <= 21 and ids[-1] == EOS


@FAST
@given(texts=st.lists(TEXT, max_size=9))
def test_ids_do_not_depend_on_the_other_texts_of_a_call(roomy: Tokeniser, texts: list[str]) -> None:
    assert roomy.ids(texts) == [roomy.ids([text])[0] for text in texts]


def test_ids_are_those_of_transformers(base: Path, roomy: Tokeniser) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(base)
    texts = [*ODD_TEXTS, *ordinary_texts(21)]
    assert roomy.ids(texts) == theirs(texts)["input_ids"]


@pytest.mark.parametrize("mark", ["</s>", "<s>", "<unk>", "[INST]"])
def test_special_token_written_in_a_text_is_plain_text(roomy: Tokeniser, mark: str) -> None:
    (ids,) = roomy.ids([f"before {mark} after{mark}"])
    assert not {0, BOS, EOS} & set(ids[1:-1])
    assert len(ids) > 2 + 2 + 2 * 2  # the mark is several pieces, twice


@pytest.mark.parametrize("mark", ["</s>", "<s>"])
def test_special_token_written_in_a_text_is_plain_text_where_the_tokenizer_would_split_it(
    changed: Callable[..., Path], spec: EmbeddingSpec, roomy: Tokeniser, mark: str
) -> None:
    folder = changed(split_special_tokens=False)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(f"a {mark} b")["input_ids"]
    assert theirs.count(BOS) + theirs.count(EOS) == 3  # what the contract must not do
    ours = Tokeniser.open(folder, read_framing(folder, spec, None)).ids([f"a {mark} b"])
    assert ours == roomy.ids([f"a {mark} b"])


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "🙂👩‍👩‍👧", "漢字とかな", "é e\u0301"])
def test_any_character_survives_tokenising(base: Path, roomy: Tokeniser, text: str) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
    (ids,) = roomy.ids([text])
    assert tokenizer.decode(ids[1:-1], skip_special_tokens=False) == text


def test_no_texts_give_no_ids(roomy: Tokeniser) -> None:
    assert roomy.ids([]) == []


# -- refusals --


@pytest.mark.parametrize("text", ["\ud800", "ok then \udcff broken"])
def test_lone_surrogate_is_refused_by_its_index(roomy: Tokeniser, text: str) -> None:
    with pytest.raises(InputError) as error:
        roomy.ids(["fine", "also fine", text])
    assert "lone surrogate in text 2" in one_line(error)


def test_prompt_with_a_lone_surrogate_is_refused_by_name() -> None:
    with pytest.raises(InputError) as error:
        Prompts.of_fronts({"query": "find \ud800"})
    assert "lone surrogate in 'query'" in one_line(error)


@pytest.mark.parametrize("wrong", [b"bytes", 3, None, ["nested"], np.float32(1)], ids=repr)
def test_what_is_no_str_is_refused_by_type_and_index(roomy: Tokeniser, wrong: Any) -> None:
    with pytest.raises(InputError) as error:
        roomy.ids(["fine", wrong])
    assert f"found {type(wrong).__name__} at index 1" in one_line(error)


def test_prompt_without_room_for_a_text_is_refused(tokeniser: Tokeniser) -> None:
    with pytest.raises(InputError) as error:
        tokeniser.ids(["text"], Prompt("one two three four five six seven eight nine ten " * 3))
    assert "expected a prompt shorter than 19 tokens" in one_line(error)


def test_longest_prompt_that_is_taken_leaves_room_for_a_token(tokeniser: Tokeniser) -> None:
    prompt = Prompt(" ".join(["a"] * 18))
    (ids,), (other,) = tokeniser.ids([" b c d"], prompt), tokeniser.ids([" d c b"], prompt)
    assert len(ids) == len(other) == 21
    assert ids[:-2] == other[:-2] and ids[-2] != other[-2]
    with pytest.raises(InputError):
        tokeniser.ids([" b"], Prompt(prompt.front + " a"))


@pytest.mark.parametrize("tokens", [7, 0, -1, 8193])
def test_window_outside_the_models_positions_is_refused(
    base: Path, spec: EmbeddingSpec, tokens: int
) -> None:
    with pytest.raises(InputError) as error:
        read_framing(base, spec, tokens)
    assert "between 8 and the model's 8192 positions" in one_line(error)


def test_missing_tokenizer_is_named(tmp_path: Path, framing: TokenFraming) -> None:
    with pytest.raises(MissingError) as error:
        Tokeniser.open(tmp_path, framing)
    assert "tokenizer.json" in one_line(error)


def test_broken_tokenizer_is_refused(tmp_path: Path, framing: TokenFraming) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError) as error:
        Tokeniser.open(tmp_path, framing)
    assert "expected a fast tokenizer" in one_line(error)


def test_tokenizer_of_a_larger_vocabulary_is_refused(
    changed: Callable[..., Path], spec: EmbeddingSpec
) -> None:
    folder = changed(lambda tokenizer: tokenizer.add_tokens(["<extra>"]))
    with pytest.raises(InputError) as error:
        read_framing(folder, spec, None)
    assert "embedding of 32000 for every token, found none for '<extra>' (32000)" in one_line(error)


# -- tokenizers as they come --


EDITS: dict[str, Edit] = {
    "truncation": lambda tokenizer: tokenizer.enable_truncation(5),
    "padding": lambda tokenizer: tokenizer.enable_padding(length=64, direction="left"),
}


@pytest.mark.parametrize("name", EDITS)
def test_tokenizers_own_padding_and_truncation_change_nothing(
    changed: Callable[..., Path], spec: EmbeddingSpec, roomy: Tokeniser, name: str
) -> None:
    folder = changed(EDITS[name])
    tokeniser = Tokeniser.open(folder, read_framing(folder, spec, 4096))
    assert tokeniser.framing == roomy.framing
    assert tokeniser.ids(ODD_TEXTS) == roomy.ids(ODD_TEXTS)


@pytest.mark.parametrize(
    ("trained", "tokenizers_own", "window", "expected"),
    [
        (512, 1024, 4096, 512),
        (9999, None, 4096, 8192),
        (None, 1024, 4096, 1024),
        (None, 8192, 4096, 8192),
        (None, 10**30, 4096, 4096),
        (None, None, 4096, 4096),
        (None, None, None, 8192),
    ],
)
def test_default_length_is_the_first_limit_that_the_folder_gives(
    changed: Callable[..., Path],
    spec: EmbeddingSpec,
    trained: int | None,
    tokenizers_own: int | None,
    window: int | None,
    expected: int,
) -> None:
    folder = changed(model_max_length=tokenizers_own)
    if trained is not None:
        path = folder / LIMIT_FILE
        path.write_text(json.dumps({"max_seq_length": trained}))
    framing = read_framing(folder, replace(spec, sliding_window=window), None)
    assert framing.max_tokens == expected


@pytest.mark.parametrize(
    ("adapters", "models", "expected"),
    [(512, 256, 512), (None, 256, 256), (None, None, 4096)],
    ids=["both", "model", "neither"],
)
def test_default_length_is_the_adapters_before_the_models(
    changed: Callable[..., Path],
    spec: EmbeddingSpec,
    tmp_path: Path,
    adapters: int | None,
    models: int | None,
    expected: int,
) -> None:
    adapter, model = changed(model_max_length=None), tmp_path / "model"
    model.mkdir()
    for folder, length in ((adapter, adapters), (model, models)):
        if length is not None:
            (folder / LIMIT_FILE).write_text(json.dumps({"max_seq_length": length}))
    assert read_framing(model, spec, None, adapter=adapter).max_tokens == expected


@pytest.mark.parametrize("length", [1, 7, 0, -1, "512", True, [512], float("nan")], ids=str)
@pytest.mark.parametrize(
    ("file", "key"), [(LIMIT_FILE, "max_seq_length"), (CONFIG_FILE, "model_max_length")]
)
def test_default_length_that_is_none_is_refused_with_its_file(
    changed: Callable[..., Path], spec: EmbeddingSpec, file: str, key: str, length: object
) -> None:
    folder = changed(model_max_length=None)
    path = folder / file
    path.write_text(json.dumps((read_json(path) if path.exists() else {}) | {key: length}))
    with pytest.raises(InputError) as error:
        read_framing(folder, spec, None)
    assert f"at least 8 tokens as {key} in {path}, found {length!r}" in one_line(error)


def test_default_length_that_is_too_short_a_window_is_refused(
    changed: Callable[..., Path], spec: EmbeddingSpec
) -> None:
    folder = changed(model_max_length=None)
    with pytest.raises(InputError) as error:
        read_framing(folder, replace(spec, sliding_window=7), None)
    assert "as sliding_window in config.json, found 7" in one_line(error)


def test_contract_without_room_for_a_text_cannot_be_built() -> None:
    with pytest.raises(InputError) as error:
        TokenFraming(BOS, EOS, EOS, 7)
    assert "at least 8, found 7" in one_line(error)


def test_default_length_is_that_of_sentence_transformers(
    changed: Callable[..., Path], base: Path, spec: EmbeddingSpec
) -> None:
    folder = changed(model_max_length=1024)
    for path in base.iterdir():
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").max_seq_length
    assert read_framing(folder, spec, None).max_tokens == theirs == 1024


def test_a_prompts_tokens_are_counted_once(
    base: Path, spec: EmbeddingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokeniser = Tokeniser.open(base, read_framing(base, spec, None))
    counted = tokeniser.prompt_tokens(Prompt("find: "))
    monkeypatch.setattr(tokeniser, "ids", None)
    assert tokeniser.prompt_tokens(Prompt("find: ")) == counted
