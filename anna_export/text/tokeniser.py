"""Tokenising, in one place: text to token ids.

What frames a text: `<s>` where the model has it, the prompt's front, the text, truncated to fit,
the prompt's back, and `</s>` where the model has it. Special tokens written in a text are plain
text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Self

import tokenizers

from anna_export.errors import InputError
from anna_export.text.framing import TokenFraming, load_tokenizer
from anna_export.text.prompts import NO_PROMPT, Prompt
from anna_export.text.special_tokens import SpecialTokens

# A text's tokens have fewer characters than this, but for runs of one character.
_MOST_CHARACTERS = 32
# Prompts whose tokens are counted once.
_PROMPTS = 64
# How texts start: what merges with a prompt's end, and what does not.
_STARTS = ("a", "The", " the", "7", ".", "\n", "\n\n", "  ", "(", "é", "漢", "<", "🙂", "")


@dataclass(frozen=True, slots=True)
class Framed:
    """A framed text's token ids, and how many of the text's tokens were truncated to fit."""

    ids: list[int]
    truncated: int


class Tokeniser:
    """A model's tokenizer and the framing of its texts."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, framing: TokenFraming) -> None:
        self._tokenizer = tokenizer
        self.framing = framing
        self._special = SpecialTokens(tokenizer, split=framing.split_special_tokens)
        # a server asks at every request, and most texts have one of few prompts
        self._counted = lru_cache(_PROMPTS)(self._count)

    @classmethod
    def open(cls, folder: Path, framing: TokenFraming) -> Self:
        """Load a folder's tokenizer.json for plain text.

        Raises:
            MissingError: If there is no tokenizer.json.
            InputError: If it cannot be read.
        """
        return cls(load_tokenizer(folder), framing)

    def ids(self, texts: Sequence[str], prompt: Prompt = NO_PROMPT) -> list[list[int]]:
        """Return each text's token ids, framed and truncated to max_tokens.

        Raises:
            InputError: If a text is not valid Unicode text, or the prompt leaves no room.
        """
        return [framed.ids for framed in self.frame(texts, prompt)]

    def frame(self, texts: Sequence[str], prompt: Prompt = NO_PROMPT) -> list[Framed]:
        """Return what `ids` does, and what was truncated."""
        framed = self._frame(texts, prompt)
        for index, row in enumerate(framed):
            if not row.ids:
                raise InputError(
                    f"expected a token in every text, found none in text {index}, and this model "
                    "puts none around a text; leave it out"
                )
        return framed

    def with_tokens(self, texts: Sequence[str]) -> list[str]:
        """Return those of the texts that are a token at least, framing included."""
        return [text for text, row in zip(texts, self._frame(texts), strict=True) if row.ids]

    def _frame(self, texts: Sequence[str], prompt: Prompt = NO_PROMPT) -> list[Framed]:
        framing, room = self.framing, self.framing.room
        require_text(texts)
        require_text([prompt.front, prompt.back], "prompt")
        encode = self._special.encode
        if prompt != NO_PROMPT and (length := self.prompt_length(prompt)) >= room:
            raise InputError(
                f"expected a prompt shorter than {room} tokens, found {length}; shorten it or "
                "export with larger `max_tokens`"
            )
        bodies = encode(texts, prompt)
        truncated = [max(0, len(body) - room) for body in bodies]
        long = [index for index, body in enumerate(bodies) if len(body) > room]
        if prompt.back and long and framing.truncation_side == "right":
            front, end = Prompt(prompt.front), self._continuation(prompt)
            without_back = encode([texts[index] for index in long], front)
            for index, body in zip(long, without_back, strict=True):
                bodies[index] = [*body[: room - len(end)], *end]
        head, tail = framing.front_ids, framing.back_ids
        return [
            Framed([*head, *framing.cut(body, room), *tail], tokens)
            for body, tokens in zip(bodies, truncated, strict=True)
        ]

    def id_to_token(self, token: int) -> str:
        """Return how a token is written in the vocabulary."""
        return self._tokenizer.id_to_token(token) or ""

    def prompt_length(self, prompt: Prompt) -> int:
        """Return how many tokens a prompt is by itself, unframed."""
        return len(self._special.encode([""], prompt)[0])

    def require_room(self, prompts: Iterable[Prompt]) -> None:
        """Refuse a prompt that leaves no room for a text.

        Raises:
            InputError: If one of them does.
        """
        for prompt in prompts:
            self._frame([""], prompt)

    def prefix_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids with which every text with a prompt starts, `<s>` included.

        Where the prompt's end could merge with a text's start, they stop before it; a text that
        merges even further is found out by its own ids.
        """
        rows = [row.ids for row in self._frame(_STARTS, prompt)]
        shared = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
        ids = [column[0] for column in shared]
        return ids[: max(0, min(map(len, rows)) - 1)]  # something is left to compute

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens at a text's start are its prompt's, as the library counts them.

        Those of the prompt alone, but for a special token at its end. Where a text's start merges
        with the prompt's end, these are not quite the prompt's own.

        Source: Transformer._get_prompt_length of sentence-transformers 6.2.
        """
        return self._counted(prompt)

    def _count(self, prompt: Prompt) -> int:
        if not prompt.front:
            return 0
        (ids,) = self.ids([""], Prompt(prompt.front))
        added = self._tokenizer.get_added_tokens_decoder()
        special = {id_ for id_, token in added.items() if token.special}
        return len(ids) - (ids[-1] in special | {self.framing.eos_id, self.framing.pad_id})

    def truncate(self, texts: Sequence[str], tokens: int) -> list[str]:
        """Return each text, or as much of its start as so many tokens are.

        Raises:
            InputError: If a text is not valid Unicode text.
        """
        require_text(texts)
        # longer ones are rarely needed whole, and most of the time would go into their ends
        starts = [text[: tokens * _MOST_CHARACTERS] for text in texts]
        encodings = self._tokenizer.encode_batch(starts, add_special_tokens=False)
        return [
            text if len(encoding) <= tokens else text[: encoding.offsets[tokens - 1][1]]
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _continuation(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt's back that some text precedes."""
        (without,), (with_back,) = (
            self._special.encode(["a"], part) for part in (Prompt(prompt.front), prompt)
        )
        pairs = zip(without, with_back, strict=False)
        return with_back[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) :]


def require_text(texts: Sequence[str], kind: str = "text") -> None:
    """Refuse anything that is not a sequence of str, each valid Unicode.

    Raises:
        InputError: Naming the first that is not.
    """
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"expected every {kind} as str, found {type(text).__name__} at index {index}"
            )
        if not _is_unicode(text):
            raise InputError(
                f"expected valid Unicode, found a lone surrogate in {kind} {index}; "
                "decode with errors='replace'"
            )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
