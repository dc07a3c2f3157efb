"""Token framing, read from a folder: the special tokens around a text, and the longest sequence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import tokenizers

from anna_export.errors import InputError, MissingError
from anna_export.files.model_folders import Adapters, from_last, in_order
from anna_export.spec import EmbeddingSpec, PoolingMode
from anna_export.text.limit import MIN_TOKENS, longest_sequence
from anna_export.text.st_files import MODULES_FILE
from anna_export.text.tokenizer_files import (
    SETTINGS_FILE,
    Ends,
    add_stated_tokens,
    read_ends,
    read_settings,
    require_rows,
    require_taken_whole,
    special_id,
    truncation_side,
)
from anna_export.text.tokenizer_files import TOKENIZER_FILE as TOKENIZER_FILE
from anna_export.text.unread_tokenizer import require_same_tokenizer

CONFIG_FILE = SETTINGS_FILE
# what a tokenizer's folder may hold; those of an artifact are part of its identity
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
)
# where an end of the framing comes from: the tokenizer itself, or whoever exports
POST_PROCESSOR: Final = "post-processor"
CHOSEN: Final = "chosen"


@dataclass(frozen=True, slots=True)
class TokenFraming:
    """How token ids frame a text.

    Args:
        bos_id: Put first; None for a model without.
        eos_id: Put last, exactly once; None for a model without.
        pad_id: Fills batches on the right; never seen by a real token.
        max_tokens: The longest sequence, `<s>`, prompt and `</s>` included.
        truncation_side: Which end of prompt and text is cut where they are longer.
        split_special_tokens: Whether special tokens in a prompt are plain text, as in a text.

    Raises:
        InputError: If max_tokens is below MIN_TOKENS.
    """

    bos_id: int | None
    eos_id: int | None
    pad_id: int
    max_tokens: int
    truncation_side: Literal["right", "left"] = "right"
    split_special_tokens: bool = False

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

    def cut(self, ids: Sequence[int], room: int) -> Sequence[int]:
        """Return as many ids as there is room for."""
        return ids[:room] if self.truncation_side == "right" else ids[max(0, len(ids) - room) :]


@dataclass(frozen=True, slots=True)
class FramingReading:
    """A folder's framing, and by `bos`, `eos` and `pad` what decided it."""

    framing: TokenFraming
    source: dict[str, str]


def framing_note(source: Mapping[str, str]) -> str:
    """Say in one line what the files did not agree on; "" where they did."""
    return "; ".join(
        f"{end}: {reason}" for end, reason in source.items() if reason != POST_PROCESSOR
    )


def read_framing(
    model: Path,
    spec: EmbeddingSpec,
    max_tokens: int | None,
    *,
    adapter: Adapters = None,
    eos: bool | None = None,
) -> TokenFraming:
    """Return the framing alone of what `framing_of` reads; arguments and errors are the same."""
    return framing_of(model, spec, max_tokens, adapter=adapter, eos=eos).framing


def framing_of(
    model: Path,
    spec: EmbeddingSpec,
    max_tokens: int | None,
    *,
    adapter: Adapters = None,
    eos: bool | None = None,
) -> FramingReading:
    """Read how a model's tokenizer frames a text, and what decided it.

    What the post-processor of tokenizer.json does is what transformers 5 does for every class
    that reads the file: its loader drops add_bos_token and add_eos_token wherever there is one
    (PreTrainedTokenizerBase._from_pretrained, 5.23). Version 4 wrote the same two keys, and
    honoured them in LlamaTokenizerFast alone (update_post_processor, 4.57), so that a model may
    have been trained with an end token that no file but those keys shows.

    Args:
        model: A Hugging Face folder.
        spec: The model's numbers; ids must fit its vocabulary.
        max_tokens: The longest sequence; None takes the max_seq_length beside the tokenizer, else
            the model's, else the tokenizer's model_max_length, else the sliding window, else
            every position.
        adapter: The adapters' folders: the tokenizer.json of the last that brings one counts.
        eos: Whether an end token follows a text; None asks the files.

    Raises:
        MissingError: If a tokenizer file is missing.
        InputError: If the files do not say whether an end token follows a text, a token has no
            row in the model, or max_tokens is out of range.
        UnsupportedError: If the tokenizer puts several tokens at one end of a text.
    """
    folder = find_tokenizer(model, adapter)
    path, settings = folder / TOKENIZER_FILE, read_settings(folder)
    tokenizer = load_tokenizer(folder)
    require_taken_whole(tokenizer, folder, settings, model)
    ends = read_ends(tokenizer, path)
    eos_token_id = special_id(tokenizer, settings, "eos", folder, model)
    pad_id = special_id(tokenizer, settings, "pad", folder, model)
    require_rows(tokenizer, path, spec, pad_id)
    if eos is None:
        _require_decided(folder, settings, spec, ends, _list_modules(model, adapter))
    source = {end: _source(settings, ends, end) for end in ("bos", "eos")}
    eos_id = ends.back
    if eos is not None:
        source["eos"] = CHOSEN
        eos_id = None
        if eos and (eos_id := eos_token_id if ends.back is None else ends.back) is None:
            raise InputError(
                f"expected an eos_token of {path} in {folder / CONFIG_FILE}, found none; name the "
                "one the model was trained with"
            )
    if pad_id is None or pad_id >= spec.vocab_size:
        if pad_id is not None:
            source["pad"] = f"eos_token, as the model has no row {pad_id} for the pad_token"
        real = (eos_token_id, ends.back, ends.front, 0)
        pad_id = next(token_id for token_id in real if token_id is not None)
    framing = TokenFraming(
        bos_id=ends.front,
        eos_id=eos_id,
        pad_id=pad_id,
        max_tokens=longest_sequence(folder, model, settings, spec, max_tokens),
        truncation_side=truncation_side(path, settings),
        split_special_tokens=settings.get("split_special_tokens") is True,
    )
    return FramingReading(framing, source)


def require_end(model: Path, spec: EmbeddingSpec, adapter: Adapters = None) -> None:
    """Refuse files that leave open whether an end token follows a text, as `framing_of` does."""
    folder = find_tokenizer(model, adapter)
    ends = read_ends(load_tokenizer(folder), folder / TOKENIZER_FILE)
    if ends.back is None:
        modules = _list_modules(model, adapter)
        _require_decided(folder, read_settings(folder), spec, ends, modules)


def _list_modules(model: Path, adapter: Adapters) -> bool:
    return any((folder / MODULES_FILE).exists() for folder in (*in_order(adapter), model))


def _require_decided(
    folder: Path, settings: dict[str, Any], spec: EmbeddingSpec, ends: Ends, modules: bool
) -> None:
    """Refuse files that leave open whether the last token, which is pooled, is an end token."""
    if spec.head.pooling is not PoolingMode.LAST or ends.back is not None:
        return
    unread = f"the post-processor of {folder / TOKENIZER_FILE}"
    if settings.get("add_eos_token"):
        raise InputError(
            f"expected one answer to whether a text ends with the eos_token, whose state is the "
            f"embedding, found add_eos_token true in {folder / CONFIG_FILE} and none added by "
            f"{unread}; give `eos`: yes as transformers 4 ran a LlamaTokenizerFast, no as "
            "transformers 5 runs this tokenizer"
        )
    if not modules:
        raise InputError(
            "expected to read whether a text ends with the eos_token, whose state is the "
            f"embedding, found none added by {unread}, and no {MODULES_FILE}, with which "
            "sentence-transformers says how the model was trained; give `eos`: yes if training put "
            "it there, else no"
        )


def _source(settings: dict[str, Any], ends: Ends, end: str) -> str:
    """Say that the post-processor decided, and against which key of the settings, if any."""
    added = (ends.front if end == "bos" else ends.back) is not None
    stated = settings.get(f"add_{end}_token")
    if not isinstance(stated, bool) or stated == added:
        return POST_PROCESSOR
    return f"{POST_PROCESSOR}, against add_{end}_token {str(stated).lower()}"


def find_tokenizer(model: Path, adapter: Adapters) -> Path:
    """Return the folder with the tokenizer: that of the last adapter with one, else the model's.

    Raises:
        InputError: If an adapter after it describes another tokenizer in files that are not read.
    """
    adapters = list(from_last(adapter))
    brought = (folder for folder in adapters if (folder / TOKENIZER_FILE).exists())
    source = next(brought, model)
    for folder in adapters:
        if folder == source:
            break
        require_same_tokenizer(folder, source, load_tokenizer)
    return source


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
    if (folder / CONFIG_FILE).exists():
        add_stated_tokens(tokenizer, read_settings(folder))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer
