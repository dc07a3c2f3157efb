"""Tokenising, in one place: text to token ids to right-padded batches.

The contract: `<s>` where the model has it, the prompt's front, the text, cut at its end to fit, the
prompt's back, and `</s>` exactly once and last. Special tokens written in a text are plain text.
"""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers

from anna_export.errors import InputError, MissingError, ShapeError
from anna_export.prefix import Prefix
from anna_export.prompts import NO_PROMPT, Prompt
from anna_export.spec import EmbeddingSpec, read_json

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
# A text's tokens have fewer characters than this, but for runs of one character.
_MOST_CHARACTERS = 32
# How texts start: what merges with a prompt's end, and what does not.
_STARTS = ("a", "The", " the", "7", ".", "\n", "\n\n", "  ", "(", "é", "漢", "<", "🙂", "")


@dataclass(frozen=True, slots=True)
class TokenContract:
    """How token ids frame a text.

    Args:
        bos_id: Put first; None for a model without.
        eos_id: Put last, exactly once.
        pad_id: Fills batches on the right; never seen by a real token.
        max_tokens: The longest sequence, `<s>`, prompt and `</s>` included.

    Raises:
        InputError: If max_tokens is below MIN_TOKENS.
    """

    bos_id: int | None
    eos_id: int
    pad_id: int
    max_tokens: int

    def __post_init__(self) -> None:
        if self.max_tokens < MIN_TOKENS:
            raise InputError(
                f"expected max tokens of at least {MIN_TOKENS}, found {self.max_tokens}"
            )

    @property
    def room(self) -> int:
        """Tokens left for prompt and text."""
        return self.max_tokens - 1 - (self.bos_id is not None)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token ids padded on the right, all behind one prefix, if there is one.

    Raises:
        ShapeError: If the arrays do not fit together.
    """

    ids: np.ndarray  # (B, S) int64
    lengths: np.ndarray  # (B,) int64, each in 1..S
    prefix: Prefix | None = None

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.lengths.shape != self.ids.shape[:1]:
            raise ShapeError(
                f"expected ids (B, S) and lengths (B,), found {self.ids.shape} and "
                f"{self.lengths.shape}; build batches with Tokeniser.batch()"
            )
        if self.ids.dtype != np.int64 or self.lengths.dtype != np.int64:
            raise ShapeError(
                f"expected int64 ids and lengths, found {self.ids.dtype} and {self.lengths.dtype}"
            )
        if len(self.lengths) and not (1 <= self.lengths.min() <= self.lengths.max() <= self.width):
            raise ShapeError(
                f"expected lengths in 1..{self.width}, found "
                f"{self.lengths.min()}..{self.lengths.max()}"
            )

    @classmethod
    def from_mask(cls, ids: np.ndarray, mask: np.ndarray) -> Self:
        """Take ids and an attention mask of ones, then zeros, in every row.

        Raises:
            ShapeError: If a row is padded on the left, has a gap, or is empty.
        """
        if mask.shape != ids.shape or ids.ndim != 2:
            raise ShapeError(f"expected ids and mask (B, S), found {ids.shape} and {mask.shape}")
        if not np.issubdtype(ids.dtype, np.integer):
            raise ShapeError(f"expected token ids as integers, found {ids.dtype}")
        lengths = (mask != 0).sum(axis=1).astype(np.int64)
        right_padded = np.arange(mask.shape[1]) < lengths[:, None]
        wrong = np.flatnonzero(((mask != 0) != right_padded).any(axis=1) | (lengths == 0))
        if wrong.size:
            raise ShapeError(
                f"expected masks of ones then zeros (padding on the right), found "
                f"{mask[wrong[0]].tolist()[:16]} in row {wrong[0]}; pad on the right"
            )
        return cls(ids.astype(np.int64), lengths)

    @property
    def width(self) -> int:
        """S, the padded length."""
        return int(self.ids.shape[1])

    def whole(self) -> Self:
        """Return the batch with the prefix's tokens among the ids, (B, P + S)."""
        if self.prefix is None:
            return self
        front = np.broadcast_to(np.array(self.prefix.ids), (len(self.ids), len(self.prefix)))
        ids = np.concatenate([front, self.ids], axis=1)
        return type(self)(ids, self.lengths + len(self.prefix))

    @property
    def mask(self) -> np.ndarray:
        """(B, S) int64: 1 for a real token, 0 for padding."""
        return (np.arange(self.width) < self.lengths[:, None]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Framed:
    """A text's token ids, framed by the contract, and how many tokens were cut off to fit."""

    ids: list[int]
    cut: int


class Tokeniser:
    """A model's tokenizer under its contract."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, contract: TokenContract) -> None:
        self._tokenizer = tokenizer
        self.contract = contract
        self._twins = _add_twins(tokenizer, contract)

    @classmethod
    def open(cls, folder: Path, contract: TokenContract) -> Self:
        """Load a folder's tokenizer.json for plain text.

        Raises:
            MissingError: If there is no tokenizer.json.
            InputError: If it cannot be read.
        """
        return cls(_load(folder), contract)

    def ids(self, texts: Sequence[str], prompt: Prompt = NO_PROMPT) -> list[list[int]]:
        """Return each text's token ids, framed by the contract and cut to max_tokens.

        Raises:
            InputError: If a text is not valid Unicode text, or the prompt leaves no room.
        """
        return [framed.ids for framed in self.frame(texts, prompt)]

    def frame(self, texts: Sequence[str], prompt: Prompt = NO_PROMPT) -> list[Framed]:
        """Return what `ids` does, and what was cut off."""
        room = self.contract.room
        require_text(texts)
        require_text([prompt.front, prompt.back], "prompt")
        front, back = self._as_tokens(prompt.front), self._as_tokens(prompt.back)
        if prompt != NO_PROMPT and (length := len(self._encode([front + back])[0])) >= room:
            raise InputError(
                f"expected a prompt shorter than {room} tokens, found {length}; shorten it or "
                "export with a larger --max-tokens"
            )
        bodies = self._encode([f"{front}{text}{back}" for text in texts])
        cut = [max(0, len(body) - room) for body in bodies]
        long = [place for place, body in enumerate(bodies) if len(body) > room]
        if back and long:
            end = self._continuation(front, back)
            uncut = self._encode([front + texts[place] for place in long])
            for place, body in zip(long, uncut, strict=True):
                bodies[place] = [*body[: room - len(end)], *end]
        head = [] if self.contract.bos_id is None else [self.contract.bos_id]
        return [
            Framed([*head, *body[:room], self.contract.eos_id], tokens)
            for body, tokens in zip(bodies, cut, strict=True)
        ]

    def text(self, token: int) -> str:
        """Return how a token is written in the vocabulary."""
        return self._tokenizer.id_to_token(token) or ""

    def require_room(self, prompts: Iterable[Prompt]) -> None:
        """Refuse a prompt that leaves no room for a text.

        Raises:
            InputError: If one of them does.
        """
        for prompt in prompts:
            self.ids([""], prompt)

    def prefix_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids with which every text behind a prompt starts, `<s>` included.

        Where the prompt's end could merge with a text's start, they stop before it; a text that
        merges even further is found out by its own ids.
        """
        rows = self.ids(_STARTS, prompt)
        shared = takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False))
        found = [ids[0] for ids in shared]
        return found[: min(map(len, rows)) - 1]  # something is left to compute

    def cut(self, texts: Sequence[str], tokens: int) -> list[str]:
        """Return each text, or as much of its start as so many tokens are.

        Raises:
            InputError: If a text is not valid Unicode text.
        """
        require_text(texts)
        # longer ones are rarely needed whole, and most of the time would go into their ends
        starts = [text[: tokens * _MOST_CHARACTERS] for text in texts]
        found = self._tokenizer.encode_batch(starts, add_special_tokens=False)
        return [
            text if len(encoding) <= tokens else text[: encoding.offsets[tokens - 1][1]]
            for text, encoding in zip(texts, found, strict=True)
        ]

    def batch(self, rows: Sequence[Sequence[int]], prefix: Prefix | None = None) -> TokenBatch:
        """Pad token id rows on the right; they stand behind the prefix, if one is given."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        ids = np.full((len(rows), lengths.max(initial=1)), self.contract.pad_id, dtype=np.int64)
        for row, target in zip(rows, ids, strict=True):
            target[: len(row)] = row
        return TokenBatch(ids, lengths, prefix)

    def _as_tokens(self, text: str) -> str:
        """Return a prompt's text with its special tokens written as their twins."""
        for special, twin in self._twins.names.items():
            text = text.replace(special, twin)
        return text

    def _continuation(self, front: str, back: str) -> list[int]:
        """Return the ids of a back that some text precedes."""
        before, whole = self._encode([f"{front}a", f"{front}a{back}"])
        pairs = zip(before, whole, strict=False)
        return whole[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) :]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        if not (own := self._twins.ids):
            return [encoding.ids for encoding in found]
        return [[own.get(token, token) for token in encoding.ids] for encoding in found]


@dataclass(frozen=True, slots=True)
class _Twins:
    """What stands for special tokens in a prompt: names to write, and ids to read as theirs."""

    names: dict[str, str]
    ids: dict[int, int]


def _add_twins(tokenizer: tokenizers.Tokenizer, contract: TokenContract) -> _Twins:
    """Give each special token a twin of a name nobody can guess, which is a token in any text.

    The tokenizer takes all special tokens for plain text, since a user's text may hold their names.
    Those that frame a text have no twin: a prompt does not end it.
    """
    nonce = secrets.token_hex(8)
    framing = {contract.bos_id, contract.eos_id, contract.pad_id}
    specials = {
        own: token
        for own, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and own not in framing
    }
    names, ids = {}, {}
    # longest first: a name may hold another
    for own, token in sorted(specials.items(), key=lambda item: -len(item[1].content)):
        twin = tokenizers.AddedToken(
            f"<{nonce}.{own}>",
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=False,
        )
        tokenizer.add_tokens([twin])
        added = tokenizer.token_to_id(twin.content)
        assert added is not None
        names[token.content], ids[added] = twin.content, own
    return _Twins(names, ids)


def require_text(texts: Sequence[str], what: str = "text") -> None:
    """Refuse anything that is not a sequence of str, each valid Unicode.

    Raises:
        InputError: Naming the first that is not.
    """
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"expected every {what} as str, found {type(text).__name__} at index {index}"
            )
        if not _is_unicode(text):
            raise InputError(
                f"expected valid Unicode, found a lone surrogate in {what} {index}; "
                "decode with errors='replace'"
            )


def read_contract(
    folder: Path, spec: EmbeddingSpec, max_tokens: int | None, base: Path | None = None
) -> TokenContract:
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
    tokenizer, config = _load(folder), read_json(folder / CONFIG_FILE)
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
    return TokenContract(
        bos_id=bos_id if adds_bos else None,
        eos_id=eos_id,
        pad_id=eos_id if pad_id is None else pad_id,
        max_tokens=_max_tokens(folder, base, config, spec, max_tokens),
    )


def find_tokenizer(model: Path, adapter: Path | None) -> Path:
    """Return the folder with the tokenizer: the adapter's, if it brings one, else the model's."""
    return adapter if adapter is not None and (adapter / TOKENIZER_FILE).exists() else model


def find_limit_file(folder: Path, base: Path | None) -> Path | None:
    """Return the LIMIT_FILE that counts: beside the tokenizer, else the model's, else None."""
    paths = [place / LIMIT_FILE for place in (folder, base) if place is not None]
    return next((path for path in paths if path.exists()), None)


def _max_tokens(
    folder: Path,
    base: Path | None,
    config: dict[str, Any],
    spec: EmbeddingSpec,
    asked: int | None,
) -> int:
    if asked is not None:
        if not MIN_TOKENS <= asked <= spec.max_positions:
            raise InputError(
                f"expected max tokens between {MIN_TOKENS} and the model's {spec.max_positions} "
                f"positions, found {asked}"
            )
        return asked
    limit, place = _limit(folder, base, config, spec)
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= MIN_TOKENS:
        raise InputError(
            f"expected at least {MIN_TOKENS} tokens as {place}, found {limit!r}; correct it or "
            "give --max-tokens"
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
    tokenizers_own = config.get("model_max_length")
    unlimited = isinstance(tokenizers_own, int | float) and tokenizers_own > spec.max_positions
    if tokenizers_own is not None and not unlimited:
        return tokenizers_own, f"model_max_length in {folder / CONFIG_FILE}"
    if spec.sliding_window is not None:
        return spec.sliding_window, "sliding_window in config.json"
    return spec.max_positions, "max_position_embeddings in config.json"


def _load(folder: Path) -> tokenizers.Tokenizer:
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


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
