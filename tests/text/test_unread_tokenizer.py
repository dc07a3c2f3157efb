"""Adapters that describe their tokenizer in files that are not read are refused, others are not."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import transformers
from sentence_transformers import SentenceTransformer

from anna_export.errors import InputError
from anna_export.text.framing import TOKENIZER_FILE, find_tokenizer
from anna_export.weights.checkpoint import Checkpoint
from anna_export.weights.merge import write_merged
from demo.tokenizer import load_sentencepiece
from tests.support.refusals import refusal
from tests.support.types import MakeAdapter, MakeModel

pytestmark = pytest.mark.filterwarnings("ignore:::peft")

SETTINGS = "tokenizer_config.json"
QUERY = {"content": "<query>", "special": True}


@pytest.fixture(scope="module")
def base(make_model: MakeModel) -> Path:
    """A base whose vocabulary is padded by 64 rows, as many are."""
    return make_model(vocab_size=32064, num_hidden_layers=1)


@pytest.fixture
def adapter(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_adapter(base, target_modules=["q_proj"]), tmp_path / "lora"))


def write(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content))


def refused(base: Path, adapter: Path) -> str:
    return refusal(InputError, lambda: find_tokenizer(base, adapter))


# -- what is refused --


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.model.v3", "tekken.json"])
def test_slow_tokenizer_alone_is_refused_with_what_to_do(
    base: Path, adapter: Path, name: str
) -> None:
    (adapter / name).write_bytes(b"pieces")
    assert refused(base, adapter) == (
        f"expected tokenizer.json beside {adapter / name}, found none, and no other vocabulary is "
        f"read; write it with AutoTokenizer.from_pretrained({str(adapter)!r})"
        f".save_pretrained({str(adapter)!r})"
    )


def test_what_to_do_with_a_slow_tokenizer_is_enough(base: Path, adapter: Path) -> None:
    (adapter / "tokenizer.model").write_bytes(load_sentencepiece().serialized_model_proto())
    write(adapter, SETTINGS, {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"})
    assert "AutoTokenizer.from_pretrained" in refused(base, adapter)
    transformers.AutoTokenizer.from_pretrained(str(adapter)).save_pretrained(str(adapter))
    assert find_tokenizer(base, adapter) == adapter


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("added_tokens.json", {"<query>": 32000}, "the token '<query>' (32000)"),
        ("added_tokens.json", {"</s>": 7}, "the token '</s>' (7)"),
        (SETTINGS, {"added_tokens_decoder": {"32000": QUERY}}, "the token '<query>' (32000)"),
        (SETTINGS, {"eos_token": "<|im_end|>"}, "the token '<|im_end|>'"),
        ("special_tokens_map.json", {"eos_token": {"content": "<end>"}}, "the token '<end>'"),
        (SETTINGS, {"add_eos_token": False}, "add_eos_token false"),
        (SETTINGS, {"truncation_side": "left"}, "truncation_side left"),
    ],
    ids=str,
)
def test_file_that_says_otherwise_than_the_tokenizer_is_refused(
    base: Path, adapter: Path, name: str, content: dict[str, Any], problem: str
) -> None:
    if "add_eos_token" in content:
        folder = Path(shutil.copytree(base, adapter.with_name("base")))
        settings = json.loads((base / SETTINGS).read_text())
        del settings["add_eos_token"]
        write(folder, SETTINGS, settings)
        base = folder
    write(adapter, name, content)
    message = refused(base, adapter)
    assert message.startswith(f"expected what {base / TOKENIZER_FILE} says in {adapter}, which ")
    assert f"found {problem}; save the tokenizer it was trained with there" in message


def test_nothing_is_written_from_an_adapter_that_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    write(adapter, "added_tokens.json", {"<query>": 32000})
    refusal(InputError, lambda: write_merged(base, adapter, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# -- what is not --


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (SETTINGS, {"eos_token": "</s>", "add_eos_token": True, "truncation_side": "right"}),
        (SETTINGS, {"added_tokens_decoder": {"2": {"content": "</s>", "special": True}}}),
        (SETTINGS, {"pad_token": "[PAD]", "padding_side": "left", "chat_template": "none"}),
        ("special_tokens_map.json", {"eos_token": {"content": "</s>"}, "pad_token": "</s>"}),
        ("added_tokens.json", {}),
    ],
    ids=str,
)
def test_file_that_says_the_same_is_no_reason_to_refuse(
    base: Path, adapter: Path, name: str, content: dict[str, Any]
) -> None:
    write(adapter, name, content)
    assert find_tokenizer(base, adapter) == base


def test_token_that_pads_is_no_reason_to_refuse(base: Path, adapter: Path) -> None:
    write(adapter, "added_tokens.json", {"[PAD]": 32000})
    write(adapter, SETTINGS, {"pad_token": "[PAD]"})
    assert find_tokenizer(base, adapter) == base


def test_bases_own_files_without_the_tokenizer_are_no_reason_to_refuse(
    base: Path, adapter: Path
) -> None:
    shutil.copyfile(base / SETTINGS, adapter / SETTINGS)
    assert find_tokenizer(base, adapter) == base


def test_adapter_of_sentence_transformers_brings_its_tokenizer(base: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(base), device="cpu")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="FEATURE_EXTRACTION")
    model.add_adapter(lora)
    model.save(str(tmp_path / "lora"))
    assert find_tokenizer(base, tmp_path / "lora") == tmp_path / "lora"


def test_files_of_an_adapter_before_the_one_with_a_tokenizer_do_not_count(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    write(adapter, "added_tokens.json", {"<query>": 32000})
    last = tmp_path / "last"
    last.mkdir()
    shutil.copyfile(base / TOKENIZER_FILE, last / TOKENIZER_FILE)
    assert find_tokenizer(base, [adapter, last]) == last
    assert "'<query>'" in refusal(InputError, lambda: find_tokenizer(base, [last, adapter]))


# -- rows that no token reaches --


def enlarged(base: Path, rows: int, folder: Path) -> Path:
    model = transformers.AutoModel.from_pretrained(base)
    model.resize_token_embeddings(rows)
    config = peft.LoraConfig(target_modules=["q_proj"])
    peft.get_peft_model(model, config).save_pretrained(folder, save_embedding_layers=True)
    return folder


def test_rows_of_added_tokens_that_the_tokenizer_lacks_are_refused(
    base: Path, tmp_path: Path
) -> None:
    adapter = enlarged(base, 32066, tmp_path / "lora")
    message = refusal(InputError, lambda: Checkpoint.open(base, adapter))
    assert "rows 32064 to 32065 of its embedding are of tokens that" in message
    assert message.endswith("or the base's if no token was added")
    shutil.copyfile(base / TOKENIZER_FILE, adapter / TOKENIZER_FILE)
    assert Checkpoint.open(base, adapter).spec.vocab_size == 32066


def test_padded_vocabulary_of_a_base_is_no_reason_to_refuse(base: Path, adapter: Path) -> None:
    assert Checkpoint.open(base, adapter).spec.vocab_size == 32064
