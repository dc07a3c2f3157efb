"""Special tokens: a prompt's are the tokens that transformers makes of them, a text's plain text.

transformers reads special tokens wherever they stand, in prompt and text alike. A text's may come
from anybody, and must not end it; so where a text holds one, its characters are what counts.
"""

import copy
import re
import secrets
from collections.abc import Sequence
from functools import cached_property

import tokenizers

from anna_export.text.prompts import NO_PROMPT, Prompt


class SpecialTokens:
    """Encodes texts between the two parts of a prompt.

    Args:
        tokenizer: Takes special tokens for plain text.
        split: Whether it does in prompts too (`split_special_tokens` of tokenizer_config.json).
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, split: bool) -> None:
        self._plain = tokenizer
        self._tokens = {
            token_id: token
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special and not split
        }
        self._ids = frozenset(self._tokens)
        longest_first = sorted((token.content for token in self._tokens.values()), key=len)[::-1]
        self._names = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._any_normalized = any(token.normalized for token in self._tokens.values())

    def encode(self, texts: Sequence[str], prompt: Prompt) -> list[list[int]]:
        """Return the ids of each text in a prompt, unframed."""
        joined = [f"{prompt.front}{text}{prompt.back}" for text in texts]
        if not self._may_have_tokens(prompt):
            encodings = self._plain.encode_batch_fast(joined, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        encodings = self._recognising.encode_batch(joined, add_special_tokens=False)
        return [
            self._apart(text, prompt)
            if text and self._has_tokens(encoding, prompted, len(prompt.front), len(text))
            else encoding.ids
            for text, prompted, encoding in zip(texts, joined, encodings, strict=True)
        ]

    def _may_have_tokens(self, prompt: Prompt) -> bool:
        if prompt == NO_PROMPT:
            return False
        # a normaliser may make a special token's name of other characters
        return self._any_normalized or any(map(self._names.search, (prompt.front, prompt.back)))

    def _has_tokens(
        self, encoding: tokenizers.Encoding, prompted: str, start: int, length: int
    ) -> bool:
        """Say whether part of a special token stands in a text, between start and its end."""
        for index, token_id in enumerate(encoding.ids):
            if token_id in self._ids:
                token = self._tokens[token_id]
                first, last = _core(encoding, index, prompted)
                # <unk> is what a vocabulary makes of a character, too
                if not token.normalized and prompted[first:last].strip() != token.content.strip():
                    continue
                if first < start + length and last > start:
                    return True
        return False

    def _apart(self, text: str, prompt: Prompt) -> list[int]:
        """Return the ids of a text that holds a special token, in a prompt that does too.

        The prompt's are written as stand-ins of names nobody can guess, which are tokens while
        special ones are plain text. One that is no token at its place, as one that is normalised
        only after a space, is written as it is, so that no stand-in's pieces reach the ids. A name
        that only a normaliser makes one, as of capitals, is plain text beside such a text.
        """
        tokenizer, names, ids = self._with_stand_ins
        front, back = self._names.split(prompt.front), self._names.split(prompt.back)
        # every second part is a special token of the prompt
        parts = [*front[:-1], front[-1] + text + back[0], *back[1:]]
        tokens = set(range(1, len(parts), 2))
        while True:
            written = [names[part] if i in tokens else part for i, part in enumerate(parts)]
            prompted = "".join(written)
            encoding = tokenizer.encode(prompted, add_special_tokens=False)
            matched = {
                _core(encoding, index, prompted)[0]
                for index, token_id in enumerate(encoding.ids)
                if token_id in ids
            }
            unmatched = {i for i in tokens if len("".join(written[:i])) not in matched}
            if not unmatched:
                return [ids.get(token_id, token_id) for token_id in encoding.ids]
            tokens -= unmatched

    @cached_property
    def _recognising(self) -> tokenizers.Tokenizer:
        """The tokenizer as transformers runs it: a special token's name is that token."""
        tokenizer = copy.deepcopy(self._plain)
        tokenizer.encode_special_tokens = False
        return tokenizer

    @cached_property
    def _with_stand_ins(self) -> tuple[tokenizers.Tokenizer, dict[str, str], dict[int, int]]:
        """A tokenizer, each special token's stand-in there, and whose id a stand-in's id means."""
        tokenizer, nonce = copy.deepcopy(self._plain), secrets.token_hex(8)
        tokenizer.encode_special_tokens = True
        names, ids = {}, {}
        for token_id, token in self._tokens.items():
            stand_in = tokenizers.AddedToken(
                f"<{nonce}.{token_id}>",
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=False,
            )
            tokenizer.add_tokens([stand_in])
            added = tokenizer.token_to_id(stand_in.content)
            assert added is not None
            names[token.content], ids[added] = stand_in.content, token_id
        return tokenizer, names, ids


def _core(encoding: tokenizers.Encoding, index: int, prompted: str) -> tuple[int, int]:
    """Return where a token starts and ends, without the spaces that it strips off its sides."""
    span = encoding.token_to_chars(index)
    assert span is not None
    token = prompted[slice(*span)]
    if not token.strip():
        return span
    return span[0] + len(token) - len(token.lstrip()), span[1] - len(token) + len(token.rstrip())
