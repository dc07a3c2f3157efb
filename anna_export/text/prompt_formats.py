"""How prompts are worded: FORMATS holds the words of each family of models.

A format has a query's words, which most put an instruction between; a document's, where documents
are prompted too; and those of a worked example's answer, where examples stand in front.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from anna_export.errors import InputError
from anna_export.text.prompts import QUERY, Prompt, Prompts

_INSTRUCTION: Final = "{instruction}"
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
        models: Which models were trained with it.
        query: In front of a query; {instruction} stands where the instruction does, if there is
            any.
        document: In front of a document; "": documents have no words.
        response: In front of an example's answer; None: the format has no examples.
        response_suffix: Whether the query is followed by the word for its response.
    """

    models: str
    query: str
    document: str = ""
    response: str | None = None
    response_suffix: bool = False

    @property
    def takes_instruction(self) -> bool:
        """Whether the query's words differ by task."""
        return _INSTRUCTION in self.query

    def prompt(
        self,
        instruction: str | None = None,
        examples: Sequence[Example] = (),
        response_suffix: bool | None = None,
    ) -> Prompt:
        """Return what stands around a query.

        Args:
            instruction: What to do, in words; None where the format takes none.
            examples: In front of the query, in this order.
            response_suffix: In place of the format's own; None keeps that.

        Raises:
            InputError: If the format lacks one of these, or the instruction it needs.
        """
        if self.takes_instruction != (instruction is not None):
            needed = "an instruction" if self.takes_instruction else "no instruction"
            raise InputError(f"expected {needed} in the format {self.query!r}, found {instruction}")
        front = self.query.replace(_INSTRUCTION, instruction or "")
        if self.response is None:
            if examples or response_suffix is not None:
                raise InputError(
                    f"expected neither examples nor a response in the format {self.query!r}, found "
                    "some"
                )
            return Prompt(front)
        shots = [f"{front}{example.query}{self.response}{example.response}" for example in examples]
        asks = self.response_suffix if response_suffix is None else response_suffix
        return Prompt(_BETWEEN.join([*shots, front]), self.response.rstrip() if asks else "")

    def words(self, front: str) -> bool:
        """Say whether this could be the front of a query in the format."""
        before, _, behind = self.query.partition(_INSTRUCTION)
        if not self.takes_instruction:
            return front == self.query
        return front.startswith(before) and front.endswith(behind)


FormatName = Literal[
    "e5",
    "qwen3",
    "kalm",
    "bge-en-icl",
    "embeddinggemma",
    "jina",
    "nemotron",
    "nemotron-1b-v2",
    "reasonir",
]
# What nothing says otherwise of.
DEFAULT_FORMAT: Final = "e5"
FORMATS: Final[Mapping[FormatName, Format]] = {
    "e5": Format(
        "e5-mistral, SFR, Linq, LGAI-Embedding, gte-Qwen2, F2LLM, llama-embed-nemotron",
        "Instruct: {instruction}\nQuery: ",
        response="\nResponse: ",
    ),
    "qwen3": Format(
        "Qwen3-Embedding, Octen, harrier, BidirLM: no space behind the last colon",
        "Instruct: {instruction}\nQuery:",
        response="\nResponse:",
    ),
    "kalm": Format(
        "KaLM-Embedding: a space on both sides of the line's end",
        "Instruct: {instruction} \n Query: ",
        response=" \n Response: ",
    ),
    "bge-en-icl": Format(
        "bge-en-icl, whose <response> follows the text",
        "<instruct>{instruction}\n<query>",
        response="\n<response>",
        response_suffix=True,
    ),
    "embeddinggemma": Format(
        "embeddinggemma-300m; search takes the instruction `search result`",
        "task: {instruction} | query: ",
        "title: none | text: ",
    ),
    "jina": Format("jina-embeddings-v5", "Query: ", "Document: "),
    "nemotron": Format("Nemotron-3-Embed", "query: ", "passage: "),
    "nemotron-1b-v2": Format(
        "llama-nemotron-embed-1b-v2: no space behind the colon", "query:", "passage:"
    ),
    "reasonir": Format("ReasonIR", "<|user|>\n{instruction}\n<|embed|>\n", "<|embed|>\n"),
}


def instruction_formats() -> list[FormatName]:
    """Return the names of the formats that an instruction can be put into."""
    return [name for name, words in FORMATS.items() if words.takes_instruction]


def instruction_format(prompts: Prompts) -> FormatName:
    """Return the format to put a model's instructions into: its own prompts', or the default."""
    name = format_of(prompts)
    return name if name is not None and FORMATS[name].takes_instruction else DEFAULT_FORMAT


def format_of(prompts: Prompts) -> FormatName | None:
    """Return the format that a model's prompts are in, its queries' first; None for no such."""
    names = [QUERY, prompts.default or QUERY, *prompts.by_name]
    fronts = [prompts.by_name[name].front for name in names if name in prompts.by_name]
    matches = (name for front in fronts for name, words in FORMATS.items() if words.words(front))
    return next(matches, None)
