"""Prompts: the named texts that are put around what a user embeds."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from anna_export.errors import InputError
from anna_export.files.json_file import read_json

PROMPTS_FILE: Final = "config_sentence_transformers.json"
# The prompts that sentence-transformers' encode_query and encode_document look for; of the latter's
# it takes the first alone (findings/sentence-transformers-documents-prompt.sh).
QUERY: Final = "query"
DOCUMENTS: Final = ("document", "passage", "corpus")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is put around a text.

    Special tokens written in a prompt are tokens, as its author meant them; in a text they are
    plain text.

    Args:
        front: Put in front of the text.
        back: Put behind it; it stays where a long text is cut.
    """

    front: str = ""
    back: str = ""


NO_PROMPT: Final = Prompt()


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts by name.

    Args:
        by_name: Each prompt.
        default: The one used where none is named; None: no prompt.
        documents: By the name of a prompt for queries, that of the prompt for their documents;
            none there, or "", means documents as they are.
    """

    by_name: Mapping[str, Prompt] = field(default_factory=dict)
    default: str | None = None
    documents: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fronts: dict[str, str] = {}
        for name, prompt in self.by_name.items():
            if not name:
                raise InputError(f"expected a name for every prompt, found none for {prompt!r}")
            if any("\ud800" <= character <= "\udfff" for character in prompt.front + prompt.back):
                raise InputError(f"expected valid Unicode, found a lone surrogate in {name!r}")
            # sentence-transformers hands over what stands in front, and no name
            if fronts.setdefault(prompt.front, prompt.back) != prompt.back:
                raise InputError(
                    f"expected prompts that differ in front of the text, found {name!r}, which "
                    "differs from another only behind it"
                )
        if self.default is not None:
            self._require(self.default, "the default prompt")
        for name, documents in self.documents.items():
            self._require(name, "a prompt with documents")
            if documents:
                self._require(documents, f"the prompt for the documents of {name!r}")

    @classmethod
    def of_fronts(cls, texts: Mapping[str, str], default: str | None = None) -> Self:
        """Return prompts that stand in front of a text alone."""
        return cls({name: Prompt(text) for name, text in texts.items()}, default)

    def find(self, name: str | None) -> Prompt:
        """Return the named prompt; the default, or none, for None; none for "".

        Raises:
            InputError: If there is no prompt of that name.
        """
        name = self.default if name is None else name
        if not name:
            return NO_PROMPT
        if name not in self.by_name:
            names = ", ".join(sorted(self.by_name)) or "none"
            raise InputError(f"expected a known prompt ({names}), found {name!r}")
        return self.by_name[name]

    def queries(self) -> str:
        """Return the name of the queries' prompt: query if there is one, else the default."""
        return QUERY if QUERY in self.by_name else self.default or ""

    def for_front(self, front: str) -> Prompt:
        """Return the prompt with this front; one of it alone, if there is none."""
        matching = (prompt for prompt in self.by_name.values() if prompt.front == front)
        return next(matching, Prompt(front))

    def fronts(self) -> dict[str, str]:
        """Return what stands in front of a text, by name: all that sentence-transformers knows."""
        return {name: prompt.front for name, prompt in self.by_name.items()}

    def distinct(self) -> list[Prompt]:
        """Return each different prompt once, no prompt among them, in a fixed order."""
        distinct = {NO_PROMPT, *self.by_name.values()}
        return sorted(distinct, key=lambda prompt: (prompt.front, prompt.back))

    def hashes(self) -> dict[str, str]:
        """Return each prompt's sha256, by name."""
        return {
            name: hashlib.sha256(json.dumps(asdict(prompt)).encode()).hexdigest()
            for name, prompt in self.by_name.items()
        }

    def _require(self, name: str, role: str) -> None:
        if name not in self.by_name:
            raise InputError(f"expected {role} to be one of {sorted(self.by_name)}, found {name!r}")


def read_prompts(folder: Path) -> Prompts:
    """Read the prompts of a sentence-transformers folder; none where it has no such file.

    Raises:
        InputError: If they are not texts by name.
    """
    path = folder / PROMPTS_FILE
    if not path.exists():
        return Prompts()
    config = read_json(path)
    texts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if (
        not isinstance(texts, dict)
        or not all(isinstance(text, str) for text in texts.values())
        or not isinstance(default, str | None)
    ):
        raise InputError(
            f"expected prompts by name, and the default's name, in {path}, found {texts!r} and "
            f"{default!r}"
        )
    documents = next((name for name in DOCUMENTS if name in texts), None)
    paired = {QUERY: documents} if documents is not None and QUERY in texts else {}
    return replace(Prompts.of_fronts(texts, default), documents=paired)
