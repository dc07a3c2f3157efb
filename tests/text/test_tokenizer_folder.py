"""An artifact's tokenizer files say what its framing says, to every library that loads them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import processors

from anna_export.text.framing import TOKENIZER_FILE, TokenFraming
from anna_export.text.tokeniser import Tokeniser
from anna_export.text.tokenizer_files import uncut_json
from anna_export.text.tokenizer_folder import write_tokenizer
from anna_export.verify.texts import ODD_TEXTS, long_text
from tests.support.folders import edit_json

BOS, EOS, OTHER = 1, 2, 500
SPECIAL = ("<s>", "</s>", "<unk>")
TEXTS = [text for text in ODD_TEXTS if not any(name in text for name in SPECIAL)]
FRAMINGS = {
    "both": TokenFraming(BOS, EOS, EOS, 64),
    "no front": TokenFraming(None, EOS, EOS, 64),
    "no end": TokenFraming(BOS, None, EOS, 64),
    "neither": TokenFraming(None, None, 0, 64),
    "an end of its own": TokenFraming(BOS, OTHER, 0, 64),
}

Write = Callable[..., Path]


@pytest.fixture(params=FRAMINGS)
def framing(request: pytest.FixtureRequest) -> TokenFraming:
    return FRAMINGS[request.param]


def trained(folder: Path, settings: dict[str, Any]) -> None:
    """Leave in a tokenizer what trainers leave, and a post-processor that says otherwise."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    tokenizer.enable_truncation(32, direction="left")
    tokenizer.enable_padding(direction="left", length=40, pad_id=7, pad_token="x")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", EOS)]
    )
    tokenizer.save(str(folder / TOKENIZER_FILE))
    edit_json(folder / "tokenizer_config.json", lambda config: config.update(settings))


@pytest.fixture
def write(tokenizer_folder: Path, tmp_path: Path) -> Write:
    """Writes the tokenizer of a folder that training left in disorder."""

    def write(framing: TokenFraming, **settings: Any) -> Path:
        source, folder = tmp_path / "source", tmp_path / "written"
        shutil.copytree(tokenizer_folder, source)
        disorder = {
            "tokenizer_class": "LlamaTokenizerFast",
            "add_bos_token": False,
            "add_eos_token": True,
            "padding_side": "left",
            "truncation_side": "left",
            "model_max_length": 10,
            "max_length": 12,
            "pad_token": "<unk>",
        }
        trained(source, disorder | settings)
        (source / "special_tokens_map.json").write_text('{"eos_token": "<unk>"}')
        folder.mkdir()
        write_tokenizer(source, folder, framing)
        return folder

    return write


def test_tokenizers_alone_finds_the_contracts_ids(write: Write, framing: TokenFraming) -> None:
    folder = write(framing)
    alone = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    assert alone.truncation is None and alone.padding is None
    tokeniser = Tokeniser.open(folder, framing)
    texts = tokeniser.with_tokens(TEXTS)
    assert [alone.encode(text).ids for text in texts] == tokeniser.ids(texts)
    alone.enable_truncation(framing.max_tokens)
    text = long_text(100)
    assert [alone.encode(text).ids] == tokeniser.ids([text])


@pytest.mark.parametrize("split", [True, False], ids=["names are text", "names are tokens"])
def test_transformers_finds_the_contracts_ids(
    write: Write, framing: TokenFraming, split: bool
) -> None:
    folder = write(framing, split_special_tokens=split)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokeniser = Tokeniser.open(folder, framing)
    texts = tokeniser.with_tokens([*(ODD_TEXTS if split else TEXTS), long_text(100)])
    assert theirs(texts, truncation=True)["input_ids"] == tokeniser.ids(texts)
    assert theirs.model_max_length == framing.max_tokens
    assert theirs.pad_token_id == framing.pad_id
    assert (theirs.padding_side, theirs.truncation_side) == ("right", "right")


def test_version_4s_keys_say_what_the_post_processor_does(
    write: Write, framing: TokenFraming
) -> None:
    folder = write(framing)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    # LlamaTokenizerFast of transformers 4.57 frames by these alone
    ends = [
        config[f"{end}_token"] if config[f"add_{end}_token"] else None for end in ("bos", "eos")
    ]
    alone = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    ids = [None if name is None else alone.token_to_id(name) for name in ends]
    assert ids == [framing.bos_id, framing.eos_id]
    assert "max_length" not in config  # fastembed would cut there


def test_side_that_is_cut_is_stated(write: Write) -> None:
    framing = TokenFraming(BOS, EOS, EOS, 64, "left")
    theirs = transformers.AutoTokenizer.from_pretrained(write(framing))
    text = " ".join(map(str, range(100)))
    ids = theirs(text, truncation=True)["input_ids"]
    assert len(ids) == 64 and ids[0] == BOS and theirs.decode(ids[1:-1]).endswith("98 99")


def test_tokenizer_without_left_overs_is_kept_byte_for_byte(tokenizer_folder: Path) -> None:
    path = tokenizer_folder / TOKENIZER_FILE
    assert uncut_json(path) == path.read_text(encoding="utf-8")
