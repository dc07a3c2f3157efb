"""Tokenising, in one place: text to token ids to right-padded batches.

The contract: `<s>` where the model has it, the prompt's front, the text, cut at its end to fit, the
prompt's back, and `</s>` exactly once and last. Special tokens written in a text are plain text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Self

import numpy as np
import tokenizers

from anna_export.errors import InputError
from anna_export.text.batch import TokenBatch
from anna_export.text.framing import TokenContract, load_tokenizer
from anna_export.text.prefix import Prefix
from anna_export.text.prompts import NO_PROMPT, Prompt
from anna_export.text.special_tokens import add_aliases

# A text's tokens have fewer characters than this, but for runs of one character.
_MOST_CHARACTERS = 32
# How texts start: what merges with a prompt's end, and what does not.
_STARTS = ("a", "The", " the", "7", ".", "\n", "\n\n", "  ", "(", "é", "漢", "<", "🙂", "")


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
        self._twins = add_aliases(tokenizer, contract)

    @classmethod
    def open(cls, folder: Path, contract: TokenContract) -> Self:
        """Load a folder's tokenizer.json for plain text.

        Raises:
            MissingError: If there is no tokenizer.json.
            InputError: If it cannot be read.
        """
        return cls(load_tokenizer(folder), contract)

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


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
