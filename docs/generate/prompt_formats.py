"""The formats of prompts, from the table that words them."""

from anna_export.text.prompt_formats import FORMATS
from docs.generate.markdown import cell, table


def formats() -> str:
    """Return a table of the formats: the words of queries and documents, and whose they are."""
    rows = [
        [f"`{name}`", _code(words.query), _code(words.document), cell(words.models)]
        for name, words in FORMATS.items()
    ]
    return table(["format", "before a query", "before a document", "models"], rows)


def _code(words: str) -> str:
    escaped = words.replace("\n", "\\n").replace("|", "&#124;").replace("<", "&lt;")
    return f"<code>{escaped.replace(' ', '&nbsp;')}</code>" if words else "-"
