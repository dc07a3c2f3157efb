"""The folder made of a GGUF is the published model, or there is none."""

from collections.abc import Callable
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import Gemma3TextConfig

from anna_export.errors import InputError
from demo.real.base import PUBLISHED, ROTARY_BASES, check_config, check_tokens
from demo.tokenizer import build_tokenizer, load_sentencepiece


@pytest.fixture
def config() -> Any:
    bases = {
        kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in ROTARY_BASES.items()
    }
    settings = {name: value for name, value in PUBLISHED.items() if name != "model_type"}
    return Gemma3TextConfig(rope_parameters=bases, **settings)


def lose_the_windowed_base(config: Any) -> None:
    config.rope_parameters["sliding_attention"]["rope_theta"] = 1_000_000.0


def lose_the_pattern(config: Any) -> None:
    config.layer_types = ["sliding_attention"] * 18


def test_the_published_configuration_passes(config: Any) -> None:
    check_config(config)


@pytest.mark.parametrize(
    ("change", "field"),
    [(lose_the_windowed_base, "rope_theta"), (lose_the_pattern, "layer_types")],
)
def test_a_number_that_the_gguf_lost_is_named(
    config: Any, change: Callable[[Any], None], field: str
) -> None:
    change(config)
    with pytest.raises(InputError, match=f"expected {field} .* as Google publishes it"):
        check_config(config)


class TestTokens:
    """Of another tokenizer that is on every machine; the check knows no vocabulary."""

    @pytest.fixture(scope="class")
    def pieces(self) -> SentencePieceProcessor:
        return load_sentencepiece()

    @pytest.fixture(scope="class")
    def tokenizer(self, pieces: SentencePieceProcessor) -> Any:
        return build_tokenizer(pieces, 512)

    def test_equal_tokens_pass(self, tokenizer: Any, pieces: SentencePieceProcessor) -> None:
        check_tokens(tokenizer, pieces, ["Hold the lock.", "naïve café"])

    def test_a_text_whose_tokens_differ_is_named(
        self, tokenizer: Any, pieces: SentencePieceProcessor
    ) -> None:
        class Other:
            def encode(self, text: str) -> list[int]:
                ids = list(pieces.encode(text))
                return ids if text != "two" else [*ids, 5]

        with pytest.raises(InputError, match="of 'two', found"):
            check_tokens(tokenizer, Other(), ["one", "two"])  # type: ignore[arg-type]
