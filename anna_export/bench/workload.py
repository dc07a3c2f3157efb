"""What is embedded while it is timed: real sentences, of an exact number of tokens."""

from dataclasses import dataclass
from itertools import count, cycle

from anna_export.errors import InputError
from anna_export.text.prompts import Prompt
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.texts import ordinary_texts

_SENTENCES = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """Batches of so many texts, each of so many tokens, its prompt not among them."""

    batch: int
    tokens: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.tokens < 1:
            raise InputError(
                f"expected batches and lengths of at least 1, found {self.batch} x {self.tokens}"
            )

    def __str__(self) -> str:
        return f"{self.batch} x {self.tokens}"


def texts_of(tokeniser: Tokeniser, prompt: Prompt, shape: Shape, calls: int) -> list[list[str]]:
    """Return texts for so many calls; no two are the same.

    Raises:
        InputError: If texts of that length do not fit behind the prompt.
    """
    room = tokeniser.framing.room - tokeniser.prompt_length(prompt)
    framing = tokeniser.framing.max_tokens - tokeniser.framing.room
    body = max(1, shape.tokens - framing)
    if body > room:
        raise InputError(
            f"expected lengths of at most {room + framing} tokens behind this prompt, found "
            f"{shape.tokens}; leave longer ones out of `lengths`"
        )
    words = cycle(" ".join(ordinary_texts(_SENTENCES)).split())
    numbers = count()

    def numbered() -> str:
        text = str(next(numbers))
        while len(tokeniser.ids([text])[0]) < shape.tokens:
            text += "".join(f" {next(words)}" for _ in range(max(1, body // 4)))
        return tokeniser.truncate([text], body)[0]

    return [[numbered() for _ in range(shape.batch)] for _ in range(calls)]
