"""Texts as words: two that differ in case, spaces or punctuation alone are the same."""

import hashlib
import re
from typing import Final

# scripts without spaces: one character a word
_UNSPACED: Final = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Split a text into words, caseless and without punctuation."""
    return _WORD.findall(text.casefold())


def grams(text_words: list[str], length: int) -> set[str]:
    """Return the runs of so many words; of fewer words, the one run of them all."""
    if not text_words:
        return set()
    last = max(1, len(text_words) - length + 1)
    return {" ".join(text_words[start : start + length]) for start in range(last)}


def digest(*parts: str) -> int:
    """Hash texts to 63 bits, which is kept in their place; the same in every process."""
    # of 10 million texts, two share a hash with a chance of 5e-6
    content = "\0".join(parts).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1
