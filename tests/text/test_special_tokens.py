"""Special tokens of a prompt, however they are matched: the ids of `tokenizers` itself."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers

from anna_export.text.framing import CONFIG_FILE, TokenFraming, load_tokenizer
from anna_export.text.prompts import NO_PROMPT, Prompt
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.texts import ODD_TEXTS, ordinary_texts

FRAMING = TokenFraming(1, 2, 2, 4096)
NAMES = ("<instruct>", "<query>", "<response>", "[Q]", "word")
FLAGS = ("normalized", "single_word", "lstrip", "rstrip")
# one way to match at a time, none, and all
WAYS = [
    (),
    *((flag,) for flag in FLAGS),
    ("normalized", "single_word"),
    ("lstrip", "rstrip"),
    FLAGS,
]
PROMPTS = [
    Prompt("<instruct>Find it.\n<query>", "\n<response>"),
    Prompt("<instruct> Find it.\n<query> ", " <response>"),
    Prompt("<query>"),
    Prompt("", "<response>"),
    Prompt("x<query>", "<response>y"),
    Prompt("[Q]", "[Q]"),
    Prompt("word ", " word"),
    Prompt("</s><s>", "</s>"),
    Prompt("Query: "),
]
TEXTS = [
    *(text for text in ODD_TEXTS if "s>" not in text),
    *ordinary_texts(5),
    "que",
    "ry>",
    "_x",
    "9",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
FAST = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def metaspace(scheme: str) -> Callable[[tokenizers.Tokenizer], None]:
    def edit(tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)

    return edit


def normalised(*first: normalizers.Normalizer) -> Callable[[tokenizers.Tokenizer], None]:
    def edit(tokenizer: tokenizers.Tokenizer) -> None:
        spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence([*first, *spaces])

    return edit


SCHEMES: dict[str, Callable[[tokenizers.Tokenizer], None]] = {
    "prepended": normalised(),
    "first": metaspace("first"),
    "always": metaspace("always"),
    "never": metaspace("never"),
    "NFKC and lower case": normalised(normalizers.NFKC(), normalizers.Lowercase()),
}
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of a few hundred pieces, which opens in no time."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    metaspace("first")(tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([*ODD_TEXTS, *ordinary_texts(30)], trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    path = tmp_path_factory.mktemp("small") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def make(small: Path, tmp_path: Path) -> Make:
    """Writes that tokenizer with a few special tokens more, matched in one way."""

    def write(
        way: Sequence[str] = (), scheme: str = "prepended", names: Sequence[str] = NAMES
    ) -> Path:
        tokenizer = tokenizers.Tokenizer.from_file(str(small))
        SCHEMES[scheme](tokenizer)
        flags = {flag: flag in way for flag in FLAGS}
        tokenizer.add_special_tokens([AddedToken(name, **flags) for name in names])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return tmp_path

    return write


def theirs(folder: Path, texts: Sequence[str], prompt: Prompt) -> list[list[int]]:
    """Give transformers' ids: special tokens are recognised wherever they stand."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    joined = [f"{prompt.front}{text}{prompt.back}" for text in texts]
    return [encoding.ids for encoding in tokenizer.encode_batch(joined)]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way) or "plain")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_prompts_special_tokens_are_those_that_the_tokenizer_itself_finds(
    make: Make, scheme: str, way: Sequence[str]
) -> None:
    folder = make(way, scheme)
    tokeniser = Tokeniser.open(folder, FRAMING)
    # a normaliser may make a name of other characters
    for prompt in [*PROMPTS, Prompt("<QUERY>")]:
        texts = [text for text in TEXTS if "word" not in text]
        assert tokeniser.ids(texts, prompt) == theirs(folder, texts, prompt), prompt


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way) or "plain")
@FAST
@given(text=TEXT, prompt=st.sampled_from(PROMPTS))
def test_prompts_special_tokens_are_the_tokenizers_whatever_the_text(
    make: Make, way: Sequence[str], text: str, prompt: Prompt
) -> None:
    folder = make(way)
    if not any(name in text for name in NAMES):
        tokeniser = Tokeniser.open(folder, FRAMING)
        assert tokeniser.ids([text], prompt) == theirs(folder, [text], prompt)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way) or "plain")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_that_holds_a_special_token_is_what_a_tokenizer_without_that_token_makes_of_it(
    make: Make, scheme: str, way: Sequence[str]
) -> None:
    # a name that no piece of the vocabulary has, so that a tokenizer without it can exist
    prompts = [
        prompt for prompt in PROMPTS if "s>" not in prompt.front and "word" not in prompt.front
    ]
    texts = [
        "<mark>",
        "a <mark>",
        "<mark> b",
        "a<mark>b",
        "<mark><mark>",
        "  <mark>\n",
        "漢<mark>🙂",
    ]
    without = [theirs(make(way, scheme), texts, prompt) for prompt in prompts]
    tokeniser = Tokeniser.open(make(way, scheme, (*NAMES, "<mark>")), FRAMING)
    for prompt, expected in zip([*prompts], without, strict=True):
        assert tokeniser.ids(texts, prompt) == expected, prompt


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way) or "plain")
@pytest.mark.parametrize("prompt", PROMPTS, ids=repr)
def test_text_that_holds_the_prompts_special_token_has_the_same_ids_every_time(
    make: Make, way: Sequence[str], prompt: Prompt
) -> None:
    folder, texts = (
        make(way),
        [f"a {name}{other} b" for name, other in itertools.product(NAMES, NAMES)],
    )
    first, second = (Tokeniser.open(folder, FRAMING).ids(texts, prompt) for _ in range(2))
    assert first == second
    vocabulary = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    assert all(max(row) < vocabulary for row in first)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way) or "plain")
def test_text_alone_is_plain_text_as_where_transformers_splits_special_tokens(
    make: Make, way: Sequence[str]
) -> None:
    folder = make(way)
    (folder / CONFIG_FILE).write_text('{"tokenizer_class": "TokenizersBackend"}')
    texts = [f"a {name}b{other} c" for name, other in itertools.product([*NAMES, "</s>"], NAMES)]
    split = transformers.AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    assert Tokeniser.open(folder, FRAMING).ids(texts, NO_PROMPT) == split(texts)["input_ids"]


def test_texts_are_not_encoded_twice_where_the_prompt_has_no_special_token(make: Make) -> None:
    tokeniser = Tokeniser(load_tokenizer(make()), FRAMING)
    tokeniser.ids(["a <query> b"], Prompt("Query: "))
    assert not {"_recognising", "_with_stand_ins"} & set(vars(tokeniser._special))
