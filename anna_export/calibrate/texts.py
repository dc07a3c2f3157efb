"""Calibration texts: a user's, or a seeded sample of the prose that every Python brings along."""

import ast
import hashlib
import json
import random
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Final

from anna_export.errors import InputError, MissingError
from anna_export.files.text_file import read_texts
from anna_export.text.prompts import Prompts
from anna_export.text.tokeniser import Tokeniser

SEED: Final = 0
# Ranges settle with a few thousand tokens; 7 billion parameters take minutes for them on 2 cores.
DEFAULT_TEXTS: Final = 48
LONGEST_TEXT_CHARACTERS: Final = 800
# Activations of all tokens are held at once: 100 kB each in a 7 B model.
MOST_TOKENS: Final = 8192
_SHORTEST_CHARACTERS: Final = 80


@dataclass(frozen=True, slots=True)
class CalibrationTexts:
    """Texts and their token ids behind the model's prompts.

    Args:
        texts: Those that were used.
        rows: Their token ids.
        sha256: Hash of the rows.
    """

    texts: list[str]
    rows: list[list[int]]
    sha256: str

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(row) for row in self.rows)


def calibration_texts(
    source: Path | None, tokeniser: Tokeniser, prompts: Prompts
) -> CalibrationTexts:
    """Choose texts in a seeded order, up to MOST_TOKENS, each behind the next of the prompts.

    Args:
        source: A .txt or .jsonl file of texts; None for docstrings of the standard library.
        tokeniser: The model's.
        prompts: The model's; no prompt is one of them.

    Raises:
        InputError: If no text is left: all are blank, or none fits the model whole.
        MissingError: If there is no such file, or this Python came without its sources.
    """
    if source is None:
        candidates = _docstrings(DEFAULT_TEXTS)
    else:
        candidates = [text for text in read_texts(source).texts() if text.strip()]
        if not candidates:
            raise InputError(f"expected calibration texts, found only blank ones in {source}")
        random.Random(SEED).shuffle(candidates)
    # a cut text, which is as long as the limit, has its end token where no whole one has it
    longest = min(tokeniser.framing.max_tokens - 1, MOST_TOKENS)
    chosen, rows, tokens = [], [], 0
    for text, row in _prompted_rows(candidates, tokeniser, prompts):
        if len(row) > longest:
            continue
        if tokens + len(row) > MOST_TOKENS:
            break
        chosen.append(text)
        rows.append(row)
        tokens += len(row)
    if not rows:
        raise InputError(
            f"expected calibration texts of at most {longest} tokens with their prompt, found "
            f"{len(candidates)} longer ones in {source or 'the standard library'}; give shorter "
            "texts (`calibration`), or a larger `max_tokens`"
        )
    return CalibrationTexts(chosen, rows, hashlib.sha256(json.dumps(rows).encode()).hexdigest())


def _prompted_rows(
    texts: Sequence[str], tokeniser: Tokeniser, prompts: Prompts
) -> Iterator[tuple[str, list[int]]]:
    """Yield each text and its ids behind one of the model's prompts, in turn."""
    for text, prompt in zip(texts, cycle(prompts.distinct()), strict=False):
        yield text, tokeniser.ids([text], prompt)[0]


def _docstrings(count: int) -> list[str]:
    """Return this many of the standard library's longer docstrings, the same every time."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("*.py")) + sorted(folder.glob("[a-z]*/*.py"))
    files = [path for path in files if not {"site-packages", "test"} & set(path.parts)]
    random.Random(SEED).shuffle(files)
    texts: list[str] = []
    for path in files:
        # a few of each file, so that the sample is of many hands
        texts += list(_prose(path))[:3]
        if len(texts) >= count:
            return texts[:count]
    raise MissingError(
        f"expected the standard library's sources in {folder} to calibrate with, found too few; "
        "give texts of your own (`calibration`)"
    )


def _prose(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = " ".join((ast.get_docstring(node) or "").split())
            if len(text) >= _SHORTEST_CHARACTERS:
                yield text[:LONGEST_TEXT_CHARACTERS]
