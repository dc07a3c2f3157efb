"""Framing is read from the tokenizer, as transformers runs it; what files leave open is asked."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import processors

from anna_export.errors import InputError, UnsupportedError
from anna_export.spec import EmbeddingSpec, Head, PoolingMode, read_spec
from anna_export.text.framing import CONFIG_FILE, framing_note, framing_of, read_framing
from anna_export.text.prompts import Prompt
from anna_export.text.st_files import MODULES_FILE
from anna_export.text.tokeniser import Tokeniser
from anna_export.text.tokenizer_files import framed_json
from anna_export.verify.texts import ODD_TEXTS
from tests.support.folders import edit_json
from tests.support.refusals import one_line, refusal

BOS, EOS = 1, 2
BOTH, FRONT, BACK, NEITHER = "<s> $A </s>", "<s> $A", "$A </s>", "$A"
TEXTS = [text for text in ODD_TEXTS if text]

INST = {"__type": "AddedToken", "content": "[INST]"}

MakeFolder = Callable[..., Path]


@pytest.fixture(scope="module")
def spec(base: Path) -> EmbeddingSpec:
    return read_spec(base)


@pytest.fixture
def framed(base: Path, tmp_path: Path) -> MakeFolder:
    """Copies the tokenizer with another post-processor, and other settings; None removes."""

    def make(
        single: str = BOTH,
        *,
        modules: bool = False,
        edit: Callable[[tokenizers.Tokenizer], object] = lambda tokenizer: None,
        name: str = "model",
        **settings: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in ("config.json", "tokenizer.json", CONFIG_FILE):
            shutil.copyfile(base / file, folder / file)
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        edit(tokenizer)
        ids = {piece: tokenizer.token_to_id(piece) for piece in single.split() if piece != "$A"}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=list(ids.items())
        )
        tokenizer.save(str(folder / "tokenizer.json"))
        changes = {"add_bos_token": None, "add_eos_token": None, **settings}
        edit_json(folder / CONFIG_FILE, lambda config: config.update(changes))
        edit_json(
            folder / CONFIG_FILE,
            lambda config: [config.pop(key) for key, value in changes.items() if value is None],
        )
        if modules:
            (folder / MODULES_FILE).write_text("[]")
        return folder

    return make


def theirs(folder: Path) -> list[list[int]]:
    return transformers.AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]


def pooled(spec: EmbeddingSpec, mode: PoolingMode) -> EmbeddingSpec:
    return replace(spec, head=Head(mode))


@pytest.mark.parametrize("single", [BOTH, FRONT, BACK, NEITHER])
def test_ids_of_a_sentence_transformers_folder_are_those_of_its_tokenizer(
    framed: MakeFolder, spec: EmbeddingSpec, single: str
) -> None:
    folder = framed(single, modules=True)
    assert Tokeniser.open(folder, read_framing(folder, spec, 4096)).ids(TEXTS) == theirs(folder)


@pytest.mark.parametrize("mode", [PoolingMode.MEAN, PoolingMode.CLS])
@pytest.mark.parametrize("flag", [None, True, False])
@pytest.mark.parametrize("single", [BOTH, FRONT])
def test_ids_of_a_plain_folder_whose_pooling_is_not_by_the_last_token_are_those_of_its_tokenizer(
    framed: MakeFolder, spec: EmbeddingSpec, single: str, flag: bool | None, mode: PoolingMode
) -> None:
    folder = framed(single, add_eos_token=flag)
    framing = read_framing(folder, pooled(spec, mode), 4096)
    assert Tokeniser.open(folder, framing).ids(TEXTS) == theirs(folder)


@pytest.mark.parametrize("flag", [None, True, False])
@pytest.mark.parametrize("single", [BOTH, BACK])
def test_bos_is_what_the_post_processor_does_whatever_the_settings_say(
    framed: MakeFolder, spec: EmbeddingSpec, single: str, flag: bool | None
) -> None:
    folder = framed(single, add_bos_token=flag)
    reading = framing_of(folder, spec, 4096)
    assert Tokeniser.open(folder, reading.framing).ids(TEXTS) == theirs(folder)
    contradicts = flag is not None and flag != (single == BOTH)
    stated = f"bos: post-processor, against add_bos_token {str(flag).lower()}"
    assert framing_note(reading.source) == (stated if contradicts else "")


def test_end_token_other_than_the_eos_token_is_the_one_that_the_tokenizer_adds(
    framed: MakeFolder, spec: EmbeddingSpec
) -> None:
    folder = framed("<s> $A <unk>")
    framing = read_framing(folder, spec, 4096)
    assert framing.eos_id == 0
    assert Tokeniser.open(folder, framing).ids(TEXTS) == theirs(folder)


@pytest.mark.parametrize("modules", [True, False])
def test_files_that_contradict_one_another_on_the_end_token_are_refused_with_both(
    framed: MakeFolder, spec: EmbeddingSpec, modules: bool
) -> None:
    with pytest.raises(InputError) as error:
        read_framing(framed(FRONT, modules=modules, add_eos_token=True), spec, 4096)
    line = one_line(error)
    assert "add_eos_token true in" in line and "none added by the post-processor of" in line
    assert (
        "give `eos`: yes as transformers 4 ran a LlamaTokenizerFast, no as transformers 5" in line
    )


@pytest.mark.parametrize("flag", [None, False])
def test_plain_folder_whose_tokenizer_adds_no_end_token_is_refused_and_asks(
    framed: MakeFolder, spec: EmbeddingSpec, flag: bool | None
) -> None:
    with pytest.raises(InputError) as error:
        read_framing(framed(FRONT, add_eos_token=flag), spec, 4096)
    assert "and no modules.json" in one_line(error) and "give `eos`" in one_line(error)


@pytest.mark.parametrize(("eos", "eos_id"), [(True, EOS), (False, None)])
@pytest.mark.parametrize("flag", [None, True])
def test_choice_decides_whether_an_end_token_follows_and_is_recorded(
    framed: MakeFolder, spec: EmbeddingSpec, flag: bool | None, eos: bool, eos_id: int | None
) -> None:
    reading = framing_of(framed(FRONT, add_eos_token=flag), spec, 4096, eos=eos)
    assert reading.framing.eos_id == eos_id and reading.framing.bos_id == BOS
    assert reading.source == {"bos": "post-processor", "eos": "chosen"}


def test_chosen_end_token_is_what_transformers_adds_by_its_own_switch(
    framed: MakeFolder, spec: EmbeddingSpec
) -> None:
    folder = framed(FRONT)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, add_bos_token=True, add_eos_token=True
    )
    ours = Tokeniser.open(folder, read_framing(folder, spec, 4096, eos=True)).ids(TEXTS)
    assert ours == tokenizer(TEXTS)["input_ids"]


@pytest.mark.parametrize(("tuned", "eos_id"), [(BOTH, EOS), (FRONT, None)])
def test_folder_that_brings_the_tokenizer_decides(
    framed: MakeFolder, spec: EmbeddingSpec, tuned: str, eos_id: int | None
) -> None:
    model = framed(FRONT if tuned == BOTH else BOTH)
    adapter = framed(tuned, modules=True, name="adapter")
    assert read_framing(model, spec, 4096, adapter=adapter).eos_id == eos_id


@pytest.mark.parametrize("single", ["<s> <s> $A", "$A </s> </s>"])
def test_several_tokens_at_one_end_are_refused_by_name(
    framed: MakeFolder, spec: EmbeddingSpec, single: str
) -> None:
    with pytest.raises(UnsupportedError) as error:
        read_framing(framed(single), spec, 4096)
    assert f"making {single.replace('$A', '▁a')}" in one_line(error)


def test_tokenizer_without_an_eos_token_is_refused_where_one_is_chosen(
    framed: MakeFolder, spec: EmbeddingSpec
) -> None:
    folder = framed(FRONT, eos_token=None)
    edit_json(folder / "config.json", lambda config: config.pop("eos_token_id", None))
    with pytest.raises(InputError) as error:
        read_framing(folder, spec, 4096, eos=True)
    assert "expected an eos_token" in one_line(error)


# -- names of the special tokens --


def test_special_tokens_may_be_written_as_objects(framed: MakeFolder, spec: EmbeddingSpec) -> None:
    token = {"__type": "AddedToken", "content": "</s>", "special": True}
    folder = framed(FRONT, eos_token=token, pad_token={**token, "content": "<unk>"})
    framing = read_framing(folder, spec, None, eos=True)
    assert (framing.eos_id, framing.pad_id) == (EOS, 0)


@pytest.mark.parametrize("location", ["special_tokens_map.json", "config.json"])
def test_eos_token_may_be_named_in_another_file_alone(
    framed: MakeFolder, spec: EmbeddingSpec, location: str
) -> None:
    folder = framed(FRONT, eos_token=None, added_tokens_decoder=None)
    edit_json(folder / "config.json", lambda config: config.pop("eos_token_id", None))
    if location == "config.json":
        edit_json(folder / location, lambda config: config.update(eos_token_id=EOS))
    else:
        (folder / location).write_text(json.dumps({"eos_token": "</s>"}))
        assert transformers.AutoTokenizer.from_pretrained(folder).eos_token_id == EOS
    assert read_framing(folder, spec, None, eos=True).eos_id == EOS


def test_eos_pads_where_there_is_no_pad_token(framed: MakeFolder, spec: EmbeddingSpec) -> None:
    assert read_framing(framed(pad_token=None), spec, None).pad_id == EOS


def test_pad_token_without_a_row_in_the_model_is_replaced_and_recorded(
    framed: MakeFolder, spec: EmbeddingSpec
) -> None:
    folder = framed(edit=lambda theirs: theirs.add_special_tokens(["[PAD]"]), pad_token="[PAD]")
    reading = framing_of(folder, spec, None)
    assert reading.framing.pad_id == EOS
    assert reading.source["pad"] == "eos_token, as the model has no row 32000 for the pad_token"


@pytest.mark.parametrize("pad", ["[PAD]", "</s>"])
def test_other_token_without_a_row_in_the_model_is_refused_by_name(
    framed: MakeFolder, spec: EmbeddingSpec, pad: str
) -> None:
    def edit(theirs: tokenizers.Tokenizer) -> None:
        theirs.add_special_tokens(["[PAD]", "<query>"])

    with pytest.raises(InputError) as error:
        read_framing(framed(edit=edit, pad_token=pad), spec, None)
    first = "'<query>' (32001), and 1 such" if pad == "[PAD]" else "'[PAD]' (32000), and 2 such"
    assert first in one_line(error) and "the base was resized in training" in one_line(error)


def test_pad_token_without_a_row_that_a_text_can_hold_is_refused(
    framed: MakeFolder, spec: EmbeddingSpec
) -> None:
    folder = framed(edit=lambda theirs: theirs.add_tokens(["[PAD]"]), pad_token="[PAD]")
    with pytest.raises(InputError) as error:
        read_framing(folder, spec, None)
    assert "'[PAD]' (32000)" in one_line(error)


# -- a tokenizer.json that frames by itself --


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("single", [BOTH, FRONT, BACK, NEITHER])
def test_rewritten_tokenizer_frames_by_itself_and_cuts_nothing(
    framed: MakeFolder, spec: EmbeddingSpec, single: str, eos: bool
) -> None:
    folder = framed(single, edit=lambda theirs: theirs.enable_truncation(5))
    framing = read_framing(folder, spec, 4096, eos=eos)
    expected = Tokeniser.open(folder, framing).ids(TEXTS)
    path = folder / "tokenizer.json"
    text = framed_json(path, framing.front_ids, framing.back_ids)
    theirs_alone = tokenizers.Tokenizer.from_str(text)
    theirs_alone.encode_special_tokens = True
    assert [encoding.ids for encoding in theirs_alone.encode_batch(TEXTS)] == expected


# -- where a long text is cut --


@pytest.mark.parametrize("single", [BOTH, FRONT, NEITHER])
@pytest.mark.parametrize("prompt", ["", "Instruct: find it\nQuery: "])
@pytest.mark.parametrize("side", ["left", "right"])
def test_long_text_is_cut_at_the_side_where_transformers_cuts_it(
    framed: MakeFolder, spec: EmbeddingSpec, single: str, prompt: str, side: str
) -> None:
    folder = framed(single, modules=True, truncation_side=side)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [text * 3 for text in TEXTS]
    expected = tokenizer([prompt + text for text in texts], truncation=True, max_length=21)
    ours = Tokeniser.open(folder, read_framing(folder, spec, 21))
    assert ours.ids(texts, Prompt(prompt)) == expected["input_ids"]


@pytest.mark.parametrize("stated", [None, "right"])
def test_side_that_the_settings_do_not_state_is_that_of_the_tokenizers_truncation(
    framed: MakeFolder, spec: EmbeddingSpec, stated: str | None
) -> None:
    folder = framed(
        edit=lambda tokenizer: tokenizer.enable_truncation(9, direction="left"),
        truncation_side=stated,
    )
    side = transformers.AutoTokenizer.from_pretrained(folder).truncation_side
    assert read_framing(folder, spec, None).truncation_side == side == (stated or "left")


def test_side_that_is_none_is_refused(framed: MakeFolder, spec: EmbeddingSpec) -> None:
    with pytest.raises(InputError) as error:
        read_framing(framed(truncation_side="middle"), spec, None)
    assert "truncation_side of right or left in" in one_line(error)


def test_text_that_is_cut_at_its_start_keeps_what_stands_behind_it(
    framed: MakeFolder, spec: EmbeddingSpec
) -> None:
    folder = framed(truncation_side="left")
    tokeniser = Tokeniser.open(folder, read_framing(folder, spec, 12))
    (framed_row,) = tokeniser.frame(
        ["one two three four five six " * 3], Prompt("Query: ", "\nend")
    )
    (complete,) = Tokeniser.open(folder, replace(tokeniser.framing, max_tokens=4096)).ids(
        ["one two three four five six " * 3], Prompt("Query: ", "\nend")
    )
    assert framed_row.ids == [BOS, *complete[-11:]]
    assert framed_row.truncated == len(complete) - 12


# -- no token at all --


def test_text_without_any_token_is_refused_by_its_index(
    framed: MakeFolder, spec: EmbeddingSpec
) -> None:
    folder = framed(NEITHER)
    tokeniser = Tokeniser.open(folder, read_framing(folder, spec, None, eos=False))
    with pytest.raises(InputError) as error:
        tokeniser.ids(["a", ""])
    assert "expected a token in every text, found none in text 1" in one_line(error)
    assert tokeniser.ids([""], Prompt("Query:")) != [[]]
    tokeniser.require_room([Prompt("")])
    assert tokeniser.prefix_ids(Prompt("")) == []
    assert tokeniser.with_tokens(["a", "", "b"]) == ["a", "b"]


# -- settings that change the tokenizer --


@pytest.mark.parametrize("split", [True, False])
def test_special_tokens_of_a_prompt_are_split_where_the_settings_split_them(
    framed: MakeFolder, spec: EmbeddingSpec, split: bool
) -> None:
    folder = framed(split_special_tokens=split)
    prompt = "<s>Find it:</s> "
    expected = transformers.AutoTokenizer.from_pretrained(folder)([prompt + "a text"])
    tokeniser = Tokeniser.open(folder, read_framing(folder, spec, None))
    assert tokeniser.ids(["a text"], Prompt(prompt)) == expected["input_ids"]


@pytest.mark.parametrize(
    "settings",
    [
        {
            "added_tokens_decoder": {
                "20000": {"content": "<query>", "rstrip": True, "special": True}
            }
        },
        {"added_tokens_decoder": {"32000": {"content": "<new>", "special": True}}},
        {"additional_special_tokens": ["[INST]"]},
        {"extra_special_tokens": ["<query>", INST]},
        {"extra_special_tokens": {"image_token": "<query>"}},
        {"sep_token": "<query>", "mask_token": INST | {"lstrip": True}},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_tokens_that_the_settings_add_or_change_are_those_of_transformers(
    framed: MakeFolder, spec: EmbeddingSpec, settings: dict[str, Any]
) -> None:
    folder = framed(split_special_tokens=False, **settings)
    prompt = Prompt("[INST] <new> <query>  Find:")
    texts = ["a text", " b"]
    expected = transformers.AutoTokenizer.from_pretrained(folder)(
        [prompt.front + text for text in texts]
    )
    tokeniser = Tokeniser.open(folder, read_framing(folder, replace(spec, vocab_size=32009), None))
    assert tokeniser.ids(texts, prompt) == expected["input_ids"]


SPACED = ["  two  spaces in front", "a text"]


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_adapters_normaliser_that_transformers_drops_is_refused_until_a_config_is_beside_it(
    base: Path, spec: EmbeddingSpec, framed: MakeFolder, name: str
) -> None:
    adapter = framed(tokenizer_class=name, name="adapter")
    (adapter / "config.json").unlink()
    before = library_ids(adapter)
    line = refusal(InputError, lambda: read_framing(base, spec, None, adapter=adapter))
    assert line.endswith(f"for tokenizer_class {name}; copy {base / 'config.json'} there")
    shutil.copyfile(base / "config.json", adapter / "config.json")
    framing = read_framing(base, spec, None, adapter=adapter)
    assert Tokeniser.open(adapter, framing).ids(SPACED) == library_ids(adapter) != before


def test_normaliser_that_transformers_drops_for_a_llama_is_refused_until_it_wrote_the_file(
    spec: EmbeddingSpec, framed: MakeFolder
) -> None:
    llama = {"model_type": "llama", "num_attention_heads": 4}
    folder = framed(tokenizer_class="LlamaTokenizer")
    edit_json(folder / "config.json", lambda config: config.update(llama))
    line = refusal(InputError, lambda: read_framing(folder, spec, None))
    assert "write the tokenizer as transformers reads it, with AutoTokenizer" in line
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    framing = read_framing(folder, spec, None)
    assert Tokeniser.open(folder, framing).ids(SPACED) == library_ids(folder)


def test_class_that_takes_the_tokenizer_as_it_is_needs_no_config(
    base: Path, spec: EmbeddingSpec, framed: MakeFolder
) -> None:
    adapter = framed(name="adapter")
    (adapter / "config.json").unlink()
    framing = read_framing(base, spec, None, adapter=adapter)
    assert Tokeniser.open(adapter, framing).ids(SPACED) == library_ids(adapter)


def library_ids(folder: Path) -> list[list[int]]:
    """Return the token ids of SPACED as transformers opens a folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [list(ids) for ids in tokenizer(SPACED)["input_ids"]]
