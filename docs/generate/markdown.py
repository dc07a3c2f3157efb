"""Plain values as Markdown."""

import html
import re
from collections.abc import Sequence


def cell(text: str) -> str:
    """Return text that Markdown shows as it is, but for code in backquotes, on one line."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [
        re.sub(r"([\\*_\[])", r"\\\1", html.escape(part, quote=False)) for part in parts[::2]
    ]
    return "`".join(parts).replace("|", "&#124;")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; its cells are Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
