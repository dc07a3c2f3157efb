"""Token framing, read from a folder: the special tokens around a text, and the longest sequence."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers

from anna_export.errors import InputError, MissingError
from anna_export.files.json_file import read_json
from anna_export.files.model_folders import Adapters, from_last
from anna_export.spec import EmbeddingSpec

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
# copied byte for byte into every artifact, where the model has them
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
)
# where sentence-transformers keeps the longest sequence
LIMIT_FILE = "sentence_bert_config.json"
# below it, framing and a prompt leave no room for a text
MIN_TOKENS = 8


@dataclass(frozen=True, slots=True)
class TokenFraming:
    """How token ids frame a text.

    Args:
        bos_id: Put first; None for a model without.
        eos_id: Put last, exactly once; None for a model without.
        pad_id: Fills batches on the right; never seen by a real token.
        max_tokens: The longest sequence, `<s>`, prompt and `</s>` included.
        truncation_side: Which end of prompt and text is cut where they are longer.

    Raises:
        InputError: If max_tokens is below MIN_TOKENS.
    """

    bos_id: int | None
    eos_id: int | None
    pad_id: int
    max_tokens: int
    truncation_side: Literal["right", "left"] = "right"

    def __post_init__(self) -> None:
        if self.max_tokens < MIN_TOKENS:
            raise InputError(
                f"expected max tokens of at least {MIN_TOKENS}, found {self.max_tokens}"
            )

    @property
    def front_ids(self) -> list[int]:
        """What stands in front of every text."""
        return [] if self.bos_id is None else [self.bos_id]

    @property
    def back_ids(self) -> list[int]:
        """What stands behind every text."""
        return [] if self.eos_id is None else [self.eos_id]

    @property
    def room(self) -> int:
        """Tokens left for prompt and text."""
        return self.max_tokens - len(self.front_ids) - len(self.back_ids)


def read_framing(
    folder: Path, spec: EmbeddingSpec, max_tokens: int | None, base: Path | None = None
) -> TokenFraming:
    """Read how a model folder's tokenizer frames a text.

    Args:
        folder: A Hugging Face folder with tokenizer.json and tokenizer_config.json.
        spec: The model's numbers; ids must fit its vocabulary.
        max_tokens: The longest sequence; None takes the folder's max_seq_length, else that of
            `base`, else the tokenizer's model_max_length, else the sliding window, else every
            position.
        base: The model's folder, where the tokenizer is the adapter's.

    Raises:
        MissingError: If a tokenizer file is missing.
        InputError: If the tokenizer has no EOS, or max_tokens is out of range.
    """
    return framing_of(load_tokenizer(folder), folder, spec, max_tokens, base)


def framing_of(
    tokenizer: tokenizers.Tokenizer,
    folder: Path,
    spec: EmbeddingSpec,
    max_tokens: int | None,
    base: Path | None = None,
) -> TokenFraming:
    """Return how a loaded tokenizer frames a text; arguments and errors as of `read_framing`."""
    config = read_json(folder / CONFIG_FILE)
    eos_id = _special_id(tokenizer, config, "eos_token")
    if eos_id is None:
        raise InputError(
            f"expected an eos_token in {folder / CONFIG_FILE}, found none: the last token's "
            "state is the embedding; name the one the model was trained with"
        )
    bos_id = _special_id(tokenizer, config, "bos_token")
    adds_bos = config.get("add_bos_token")
    if adds_bos is None:
        adds_bos = bos_id is not None and tokenizer.encode("a").ids[:1] == [bos_id]
    pad_id = _special_id(tokenizer, config, "pad_token")
    largest = max(tokenizer.get_vocab().values())
    if largest >= spec.vocab_size:
        raise InputError(
            f"expected token ids below the model's vocabulary of {spec.vocab_size}, found "
            f"{largest} in {folder / TOKENIZER_FILE}; use the tokenizer the model was trained with"
        )
    return TokenFraming(
        bos_id=bos_id if adds_bos else None,
        eos_id=eos_id,
        pad_id=eos_id if pad_id is None else pad_id,
        max_tokens=_max_tokens(folder, base, config, spec, max_tokens),
    )


def find_tokenizer(model: Path, adapter: Adapters) -> Path:
    """Return the folder with the tokenizer: that of the last adapter with one, else the model's."""
    brought = (folder for folder in from_last(adapter) if (folder / TOKENIZER_FILE).exists())
    return next(brought, model)


def find_limit_file(folder: Path, base: Path | None) -> Path | None:
    """Return the LIMIT_FILE that counts: beside the tokenizer, else the model's, else None."""
    paths = [parent / LIMIT_FILE for parent in (folder, base) if parent is not None]
    return next((path for path in paths if path.exists()), None)


def _max_tokens(
    folder: Path,
    base: Path | None,
    config: dict[str, Any],
    spec: EmbeddingSpec,
    max_tokens: int | None,
) -> int:
    if max_tokens is not None:
        if not MIN_TOKENS <= max_tokens <= spec.max_positions:
            raise InputError(
                f"expected max tokens between {MIN_TOKENS} and the model's {spec.max_positions} "
                f"positions, found {max_tokens}"
            )
        return max_tokens
    limit, source = _limit(folder, base, config, spec)
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= MIN_TOKENS:
        raise InputError(
            f"expected at least {MIN_TOKENS} tokens as {source}, found {limit!r}; correct it or "
            "give `max_tokens`"
        )
    return int(min(limit, spec.max_positions))


def _limit(
    folder: Path, base: Path | None, config: dict[str, Any], spec: EmbeddingSpec
) -> tuple[Any, str]:
    """Return the first limit that is given, as it is written, and where."""
    # sentence-transformers writes the limit to the first place up to version 5, since then to the
    # second, where transformers writes 1e30 for none
    path = find_limit_file(folder, base)
    trained = read_json(path).get("max_seq_length") if path is not None else None
    if trained is not None:
        return trained, f"max_seq_length in {path}"
    tokenizer_limit = config.get("model_max_length")
    unlimited = isinstance(tokenizer_limit, int | float) and tokenizer_limit > spec.max_positions
    if tokenizer_limit is not None and not unlimited:
        return tokenizer_limit, f"model_max_length in {folder / CONFIG_FILE}"
    if spec.sliding_window is not None:
        return spec.sliding_window, "sliding_window in config.json"
    return spec.max_positions, "max_position_embeddings in config.json"


def load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """Load tokenizer.json for plain text: no padding, no truncation, special tokens as text.

    Raises:
        MissingError: If there is no tokenizer.json.
        InputError: If it cannot be read.
    """
    path = folder / TOKENIZER_FILE
    if not path.exists():
        raise MissingError(
            f"expected {path}, found none; write it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot parse
        raise InputError(
            f"expected a fast tokenizer in {path}, found: {error}; write it again with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        ) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _special_id(tokenizer: tokenizers.Tokenizer, config: dict[str, Any], name: str) -> int | None:
    token = config.get(name)
    content = token.get("content") if isinstance(token, dict) else token
    return None if content is None else tokenizer.token_to_id(content)
