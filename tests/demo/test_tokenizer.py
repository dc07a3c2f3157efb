"""The converted tokenizer: sentencepiece's ids, framed, and the same after saving and loading."""

import random
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from anna_export.errors import InputError
from demo.corpus import collect_pairs, source_files, source_folders
from demo.tokenizer import build_tokenizer, check_exact, load_sentencepiece, save_tokenizer

ODD_TEXTS = [
    "",
    "a",
    " a",
    "  a  b   c    ",
    "\t\ttabs\tand\r\nnew\n\nlines\n",
    "nul \x00 in it",
    "emoji 🙂👩‍👩‍👧🏽 and e\u0301 é",
    "日本語のテキスト 漢字 한국어 ภาษาไทย",
    "▁ a lower one eighth block ▁▁",
    "special </s> tokens <s><unk> as text</s>",
    "\u200b\ufeff\u00a0 odd spaces \u3000",
    *(" " * count + "x" + " " * count for count in range(70)),
]


@pytest.fixture(scope="module")
def pieces() -> SentencePieceProcessor:
    return load_sentencepiece()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(build_tokenizer(load_sentencepiece(), 24), path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def test_what_the_last_call_cut_and_padded_to_is_not_saved(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(load_sentencepiece(), 24)
    tokenizer(["one", "two of them"], truncation=True, max_length=4, padding="max_length")
    assert tokenizer.backend_tokenizer.truncation is not None
    save_tokenizer(tokenizer, tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert saved.truncation is None and saved.padding is None


def random_texts(count: int) -> list[str]:
    draw = random.Random(0)
    alphabet = [
        "a",
        "b",
        "the",
        "in",
        "er",
        " ",
        "  ",
        "\n",
        "\t",
        "▁",
        "é",
        "漢",
        "🙂",
        "</s>",
        "=",
    ]
    return ["".join(draw.choices(alphabet, k=draw.randrange(60))) for _ in range(count)]


def test_loaded_tokenizer_gives_sentencepieces_ids_on_odd_texts(
    loaded: PreTrainedTokenizerFast, pieces: SentencePieceProcessor
) -> None:
    check_exact(loaded, pieces, ODD_TEXTS + random_texts(2000))


def test_loaded_tokenizer_gives_sentencepieces_ids_on_docstrings(
    loaded: PreTrainedTokenizerFast, pieces: SentencePieceProcessor
) -> None:
    pairs = collect_pairs(source_files(source_folders()), 500)
    check_exact(loaded, pieces, [text for pair in pairs for text in (pair.query, pair.document)])


def test_check_refuses_ids_that_differ(pieces: SentencePieceProcessor) -> None:
    tokenizer = build_tokenizer(pieces, 24)
    tokenizer.backend_tokenizer.normalizer = None
    with pytest.raises(InputError, match="expected sentencepiece's token ids"):
        check_exact(tokenizer, pieces, ["two words"])


def test_truncation_keeps_bos_and_eos(loaded: PreTrainedTokenizerFast) -> None:
    ids = loaded("many words " * 40, truncation=True)["input_ids"]
    assert (len(ids), ids[0], ids[-1], ids.count(2)) == (24, 1, 2, 1)


def test_padding_is_on_the_right(loaded: PreTrainedTokenizerFast) -> None:
    batch = loaded(["one", "one two three"], padding=True)
    assert batch["attention_mask"][0] == sorted(batch["attention_mask"][0], reverse=True)
    assert batch["attention_mask"][0][-1] == 0


def test_decoding_gives_the_text_back(loaded: PreTrainedTokenizerFast) -> None:
    text = "Two words, 漢字 and 🙂."
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == text
