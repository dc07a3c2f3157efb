"""Prompts: the named texts that are put in front of what a user embeds."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anna_export.errors import InputError
from anna_export.spec import read_json

PROMPTS_FILE = "config_sentence_transformers.json"


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompt texts by name, and the name used where none is given (None: no prompt)."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    def __post_init__(self) -> None:
        for name, text in self.texts.items():
            if not name or not isinstance(text, str):
                raise InputError(f"expected prompts as name and text, found {name!r}: {text!r}")
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"expected valid Unicode, found a lone surrogate in {name!r}")
        if self.default is not None and self.default not in self.texts:
            raise InputError(
                f"expected the default prompt to be one of {sorted(self.texts)}, "
                f"found {self.default!r}"
            )

    def text(self, name: str | None) -> str:
        """Return the named prompt's text; the default's, or none, for None; none for "".

        Raises:
            InputError: If there is no prompt of that name.
        """
        name = self.default if name is None else name
        if not name:
            return ""
        if name not in self.texts:
            known = ", ".join(sorted(self.texts)) or "none"
            raise InputError(f"expected a known prompt ({known}), found {name!r}")
        return self.texts[name]

    def hashes(self) -> dict[str, str]:
        """Return each prompt's sha256, by name."""
        return {
            name: hashlib.sha256(text.encode()).hexdigest() for name, text in self.texts.items()
        }


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
    if not isinstance(texts, dict) or not isinstance(default, str | None):
        raise InputError(
            f"expected prompts by name, and the default's name, in {path}, found {texts!r} and "
            f"{default!r}"
        )
    return Prompts(texts, default)


def find_prompts(model: Path, adapter: Path | None) -> Prompts:
    """Read the adapter's prompts, if it brings some, else the model's."""
    tuned = read_prompts(adapter) if adapter is not None else Prompts()
    return tuned if tuned.texts else read_prompts(model)
