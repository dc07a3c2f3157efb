"""How a prompt is worded: its instruction and worked examples, between the words of a model family.

The formats are those of e5-mistral (SFR, Linq and LGAI-Embedding use its words, with examples in
front) and of bge-en-icl, where tokens introduce instruction, query and response, and the one for
the response follows the query (`response_suffix`, which either format may have or not).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from anna_export.text.prompts import Prompt

# Between examples, and between the last one and the query: FlagEmbedding's, for bge-en-icl.
_BETWEEN: Final = "\n\n"


@dataclass(frozen=True, slots=True)
class Example:
    """A query and what answers it, both as they are written in a prompt."""

    query: str
    response: str


@dataclass(frozen=True, slots=True)
class Format:
    """The words between which a prompt's parts stand.

    Args:
        instruction: In front of the instruction.
        query: In front of the query, on a line of its own.
        response: In front of an example's answer, on a line of its own.
        response_suffix: Whether the query is followed by the word for its response.
    """

    instruction: str
    query: str
    response: str
    response_suffix: bool

    def prompt(
        self,
        instruction: str,
        examples: Sequence[Example] = (),
        response_suffix: bool | None = None,
    ) -> Prompt:
        """Return what stands around the query.

        Args:
            instruction: What to do, in words.
            examples: In front of the query, in this order.
            response_suffix: In place of the format's own; None keeps that.
        """
        front = f"{self.instruction}{instruction}\n{self.query}"
        shots = [
            f"{front}{example.query}\n{self.response}{example.response}" for example in examples
        ]
        asks = self.response_suffix if response_suffix is None else response_suffix
        back = f"\n{self.response.rstrip()}" if asks else ""
        return Prompt(_BETWEEN.join([*shots, front]), back)


FORMATS: Final = {
    "e5": Format("Instruct: ", "Query: ", "Response: ", response_suffix=False),
    "bge-en-icl": Format("<instruct>", "<query>", "<response>", response_suffix=True),
}
