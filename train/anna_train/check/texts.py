"""Rules about a row's texts, each row by itself."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from anna_train.check.findings import Finding, RowLocation
from anna_train.data.rows import Row, TaskType

EMPTY: Final = "empty text"
POSITIVE_IS_NEGATIVE: Final = "positive among negatives"
REPEATED_NEGATIVE: Final = "repeated negative"
QUERY_IS_POSITIVE: Final = "query is its positive"
NO_NEGATIVES: Final = "no negatives"
SPECIAL_TOKEN: Final = "special token"
TRUNCATED: Final = "truncated"
# what Mistral's tokenizer and the embedding models over it name so
SPECIAL_TOKENS: Final = ("<s>", "</s>", "<unk>", "<instruct>", "<query>", "<response>")
# of a file's texts; above it, training sees too little of what is there
MAX_TRUNCATED_SHARE: Final = 0.05


def empty_texts(location: RowLocation, row: Row) -> Iterator[Finding]:
    """Find texts of nothing but whitespace: their embedding is that of the prompt."""
    for field, text in row.texts():
        if not text.strip():
            content = "nothing" if not text else "whitespace alone"
            yield location.error(EMPTY, field, f"expected a text, found {content}; remove it")


def positives_among_negatives(location: RowLocation, row: Row) -> Iterator[Finding]:
    """Find negatives that are positives of the same row, spaces aside."""
    positives = {_plain(text): number for number, text in enumerate(row.pos)}
    for number, text in enumerate(row.neg):
        if (same := positives.get(_plain(text))) is not None:
            yield location.error(
                POSITIVE_IS_NEGATIVE,
                f"neg[{number}]",
                f"expected negatives that answer nothing, found pos[{same}] again; remove one",
            )


def repeated_negatives(location: RowLocation, row: Row) -> Iterator[Finding]:
    """Find negatives that stand in one row twice, spaces aside."""
    first: dict[str, int] = {}
    for number, text in enumerate(row.neg):
        if (same := first.setdefault(_plain(text), number)) != number:
            yield location.warning(
                REPEATED_NEGATIVE,
                f"neg[{number}]",
                f"expected every negative once, found neg[{same}] again, which counts twice in "
                "the loss; remove one",
            )


def query_as_positive(location: RowLocation, row: Row) -> Iterator[Finding]:
    """Find positives that are the query itself, from which nothing is learnt."""
    for number, text in enumerate(row.pos):
        if text.strip() and _plain(text) == _plain(row.query):
            yield location.warning(
                QUERY_IS_POSITIVE,
                f"pos[{number}]",
                "expected an answer, found the query again; remove it",
            )


def missing_negatives(location: RowLocation, row: Row) -> Iterator[Finding]:
    """Find rows that no loss can be computed of: other rows' texts are negatives in retrieval."""
    if not row.neg and row.type is not TaskType.RETRIEVAL:
        yield location.error(
            NO_NEGATIVES,
            "neg",
            f"expected negatives in a row of type {row.type}, found none: other rows' texts are "
            "not used there; add some, or call it retrieval",
        )


class SpecialTokens:
    """Finds special tokens' names in texts.

    Args:
        names: Those to look for.
    """

    def __init__(self, names: Iterable[str]) -> None:
        longest_first = sorted(names, key=len, reverse=True)
        # a pattern without names would be found everywhere
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __call__(self, location: RowLocation, row: Row) -> Iterator[Finding]:
        """Name each text's, once."""
        for field, text in row.texts():
            if names := dict.fromkeys(self._pattern.findall(text)):
                yield location.warning(
                    SPECIAL_TOKEN,
                    field,
                    f"expected plain text, found {', '.join(names)}: taken as plain text, not as "
                    "special tokens; remove them if they are not meant",
                )


class Truncated:
    """Counts texts that are cut to fit the model.

    Args:
        model: Folder of the model, for its tokenizer.
        max_tokens: The longest sequence; None: the model's own.

    Raises:
        MissingError, InputError: If the tokenizer cannot be used, or the limit is out of range.
    """

    def __init__(self, model: Path, max_tokens: int | None) -> None:
        from anna_export.spec import read_spec
        from anna_export.text.framing import read_framing
        from anna_export.text.tokeniser import Tokeniser

        framing = read_framing(model, read_spec(model), max_tokens, eos=True)
        self.limit = framing.max_tokens
        self._tokeniser = Tokeniser.open(model, replace(framing, max_tokens=2**40))
        self._texts = self._long = self._longest = 0
        self._first: tuple[RowLocation, str] | None = None

    def __call__(self, location: RowLocation, row: Row) -> Iterator[Finding]:
        """Count a row's texts."""
        lengths = [len(ids) for ids in self._tokeniser.ids([text for _, text in row.texts()])]
        self._texts += len(lengths)
        self._long += sum(length > self.limit for length in lengths)
        self._longest = max(self._longest, *lengths)
        if self._long and self._first is None:
            number = next(n for n, length in enumerate(lengths) if length > self.limit)
            self._first = (location, [field for field, _ in row.texts()][number])
        yield from ()

    def end(self) -> Iterator[Finding]:
        """Judge the share, at the first text that is cut."""
        share = self._share
        if self._first is not None and share > MAX_TRUNCATED_SHARE:
            location, field = self._first
            yield location.warning(
                TRUNCATED,
                field,
                f"expected at most {MAX_TRUNCATED_SHARE:.0%} of the texts longer than "
                f"{self.limit} tokens, found {share:.1%}, the longest of {self._longest:,}, "
                "prompts not counted; give a larger `max_tokens`, or split them",
            )
        self._texts = self._long = self._longest = 0
        self._first = None

    def figures(self) -> dict[str, float]:
        """Return the share that is cut, and the longest text's tokens."""
        if not self._texts:
            return {}
        return {"truncated_share": self._share, "longest_tokens": self._longest}

    @property
    def _share(self) -> float:
        return self._long / self._texts if self._texts else 0.0


def special_tokens(model: Path | None) -> tuple[str, ...]:
    """Return the names of a model's special tokens; without one, those that are usual."""
    if model is None:
        return SPECIAL_TOKENS
    from tokenizers import Tokenizer

    from anna_export.text.framing import TOKENIZER_FILE

    added = Tokenizer.from_file(str(model / TOKENIZER_FILE)).get_added_tokens_decoder()
    return tuple(token.content for token in added.values() if token.special)


def _plain(text: str) -> str:
    return " ".join(text.split())
