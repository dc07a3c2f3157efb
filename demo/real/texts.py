"""What the model is tuned and tested on: docstrings of this Python and its packages, split by file.

Two kinds of rows are trained on: a docstring's summary with the text behind it, and a sentence
with half of its words left out with the sentence itself. No text of a held-out file is trained on.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from anna_train.data.rows import Row

from demo.corpus import Pair, pairs_of_source, source_files, source_folders
from demo.tasks import DOCUMENT_CHARACTERS, Docstring

# One file in so many is held out.
HELD_OUT_SHARE: Final = 5
SENTENCE_CHARACTERS: Final = range(24, 111)
_PROSE: Final = 0.93  # share of letters, spaces and common marks
_LEFT_OUT: Final = 0.5
_END_OF_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Texts:
    """Docstrings by side, each in an order that mixes their sources.

    Args:
        train: Those of the files that are trained on.
        held_out: Those of the others, of lengths that tasks are made of; no text is in both.
    """

    train: tuple[Docstring, ...]
    held_out: tuple[Docstring, ...]

    @classmethod
    def read(cls) -> Self:
        """Read this machine's."""
        sides: dict[bool, list[Docstring]] = {False: [], True: []}
        for held_out, docstring in _docstrings():
            sides[held_out].append(docstring)
        trained = {text for docstring in sides[False] for text in _both(docstring.pair)}
        untrained = [
            docstring
            for docstring in sides[True]
            if len(docstring.pair.document) in DOCUMENT_CHARACTERS
            and not trained & set(_both(docstring.pair))
        ]
        return cls(_mixed(sides[False]), _mixed(untrained))


def summary_rows(docstrings: Sequence[Docstring], count: int) -> list[Row]:
    """Return rows of summaries and the prose behind them."""
    pairs = (docstring.pair for docstring in docstrings)
    rows = (Row(pair.query, (pair.document,)) for pair in pairs if _is_prose(pair.document[:160]))
    return [row for row, _ in zip(rows, range(count), strict=False)]


def sentence_rows(docstrings: Sequence[Docstring], count: int) -> list[Row]:
    """Return rows of sentences that lack half of their words, and the sentences."""
    generator, rows, taken = random.Random(0), [], set[str]()
    for docstring in docstrings:
        for sentence in _END_OF_SENTENCE.split(docstring.text):
            if len(sentence) not in SENTENCE_CHARACTERS or sentence in taken:
                continue
            if sentence[-1] in ".!?" and _is_prose(sentence):
                taken.add(sentence)
                rows.append(Row(_thinned(sentence, generator), (sentence,)))
        if len(rows) >= count:
            break
    generator.shuffle(rows)
    return rows[:count]


def _docstrings() -> Iterator[tuple[bool, Docstring]]:
    """Yield each docstring once, and whether its file is held out."""
    taken: set[str] = set()
    for folder in source_folders():
        for path in source_files([folder]):
            name = path.relative_to(folder).as_posix()
            digest = hashlib.blake2b(f"{folder.name}/{name}".encode(), digest_size=4).digest()
            held_out = int.from_bytes(digest, "little") % HELD_OUT_SHARE == 0
            first = Path(name).parts[0].removesuffix(".py")
            for pair in pairs_of_source(path.read_bytes()):
                if not taken & set(_both(pair)):
                    taken.update(_both(pair))
                    yield held_out, Docstring(pair, folder.name, f"{folder.name}.{first}")


def _mixed(docstrings: Sequence[Docstring]) -> tuple[Docstring, ...]:
    return tuple(sorted(docstrings, key=lambda docstring: docstring.pair.digest))


def _both(pair: Pair) -> tuple[str, str]:
    return pair.query, pair.document


def _is_prose(text: str) -> bool:
    ordinary = sum(character.isalpha() or character in " ,.'-" for character in text)
    heading = "--" in text or ":" in text
    return text[:1].isupper() and not heading and ordinary / len(text) > _PROSE


def _thinned(sentence: str, generator: random.Random) -> str:
    words = [word for word in sentence.split() if generator.random() > _LEFT_OUT]
    return " ".join(words) or sentence
