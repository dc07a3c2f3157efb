"""Texts that vectors are compared on: ordinary ones, and every kind that has broken an exporter."""

from typing import Final

ODD_TEXTS: Final = (
    "",
    " ",
    "a",
    "  two  spaces,\ttab\nand newline\r\n",
    "\x00 a NUL \x00",
    "emoji 🙂👩‍👩‍👧‍👦🏳️‍🌈 and flags 🇰🇷🇫🇷",
    "漢字とかな交じり文、한국어 텍스트, 中文句子。",
    "combining: e\u0301 a\u030a n\u0303, right to left: שלום عليكم",
    "it ends in an end-of-sequence mark </s>",
    "<s> [INST] special tokens are plain text </s> here </s>",
    "\ufeffbyte order mark, \u200bzero width, \u2028line separator",
    "https://example.org/a?b=c&d=%20#e f(x) = x**2; // {[()]}",
)
_SENTENCES: Final = (
    "How long does a transfer to another bank take?",
    "The quick brown fox jumps over the lazy dog while the rain keeps falling on the roof.",
    "Return the index of the first element that is greater than the given value.",
    "A protein whose shape changes when it binds calcium was found in the deep sea.",
    "My card has not arrived yet, and it has been two weeks since I ordered it.",
    "Inflation slowed in March as energy prices fell for a third month in a row.",
    "Open the file for reading, and raise an error if it does not exist.",
    "What is the capital of the country with the longest coastline?",
)


def ordinary_texts(count: int) -> list[str]:
    """Return texts of one to a few dozen sentences, every one different, the same every time."""
    texts = []
    for index in range(count):
        sentences = 1 + (index * index) % 13
        start = index % len(_SENTENCES)
        picked = [_SENTENCES[(start + step) % len(_SENTENCES)] for step in range(sentences)]
        texts.append(f"{index}. " + " ".join(picked))
    return texts


def long_text(words: int) -> str:
    """Return a text of this many words, each at least one token; a longer one starts the same."""
    words_in_turn = " ".join(_SENTENCES).split()
    return " ".join(
        words_in_turn[(index * 7) % len(words_in_turn)] if index % 5 else str(index)
        for index in range(words)
    )
