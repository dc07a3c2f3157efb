"""Adapters without tokenizer.json, whose other files may describe another tokenizer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import tokenizers

from anna_export.errors import InputError
from anna_export.files.json_file import read_json
from anna_export.text.tokenizer_files import (
    SETTINGS_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_FILE,
    read_ends,
)

# of slow tokenizers, of Mistral's own, and of byte-level pieces
_VOCABULARIES: Final = ("tokenizer.model*", "spiece.model", "tekken.json", "vocab.json")
_ADDED_FILE: Final = "added_tokens.json"
_SAVE: Final = "save the tokenizer it was trained with there (save_pretrained)"

Load = Callable[[Path], tokenizers.Tokenizer]


def require_same_tokenizer(adapter: Path, source: Path, load: Load) -> None:
    """Refuse an adapter whose files describe another tokenizer than the one that is taken.

    Args:
        adapter: The adapter's folder, without tokenizer.json.
        source: The folder whose tokenizer is taken.
        load: Loads the tokenizer of a folder.

    Raises:
        InputError: Naming the file, or what it says that the tokenizer taken does not.
    """
    for pattern in _VOCABULARIES:
        for path in adapter.glob(pattern):
            raise InputError(
                f"expected {TOKENIZER_FILE} beside {path}, found none, and no other vocabulary is "
                f"read; write it with AutoTokenizer.from_pretrained({str(adapter)!r})"
                f".save_pretrained({str(adapter)!r})"
            )
    settings = _read(adapter / SPECIAL_TOKENS_FILE) | _read(adapter / SETTINGS_FILE)
    added = _read(adapter / _ADDED_FILE)
    if not settings and not added:
        return
    tokenizer = load(source)
    other = (_other_token(tokenizer, settings, added), _other_end(source, tokenizer, settings))
    if differs := next(filter(None, other), None):
        raise InputError(
            f"expected what {source / TOKENIZER_FILE} says in {adapter}, which brings no "
            f"{TOKENIZER_FILE}, found {differs}; {_SAVE}"
        )


def require_reached(adapter: Path, source: Path, load: Load, rows: int, base_rows: int) -> None:
    """Refuse an adapter with rows for tokens it added, over a tokenizer that has none of them.

    Rows beyond those that some token reaches are padding, as bases have it too.

    Args:
        adapter: The folder of the adapter that brings the embedding.
        source: The folder whose tokenizer is taken, which is no adapter's.
        load: Loads the tokenizer of a folder.
        rows: How many rows that embedding has.
        base_rows: How many the base's has.

    Raises:
        InputError: If no token reaches a row of the adapter's own.
    """
    largest = max(load(source).get_vocab().values())
    if base_rows > largest:
        raise InputError(
            f"expected a {TOKENIZER_FILE} in {adapter}, found none: rows {base_rows} to {rows - 1} "
            f"of its embedding are of tokens that {source / TOKENIZER_FILE} does not have; "
            f"{_SAVE}, or the base's if no token was added"
        )


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _other_token(
    tokenizer: tokenizers.Tokenizer, settings: dict[str, Any], added: dict[str, Any]
) -> str | None:
    """Name the first token that the tokenizer does not have, or has under another id."""
    for token, token_id in _tokens(settings, added):
        # no real token sees what pads
        if token is None or token == _content(settings.get("pad_token")):
            continue
        actual = tokenizer.token_to_id(token)
        if actual is None or (token_id is not None and str(actual) != str(token_id)):
            return f"the token {token!r}" + ("" if token_id is None else f" ({token_id})")
    return None


def _tokens(settings: dict[str, Any], added: dict[str, Any]) -> Iterator[tuple[str | None, Any]]:
    """Give the tokens that files name, with their ids where they say them."""
    listed = settings.get("added_tokens_decoder")
    for token_id, token in listed.items() if isinstance(listed, dict) else ():
        yield _content(token), token_id
    yield from added.items()
    for name in ("bos_token", "eos_token"):
        yield _content(settings.get(name)), None


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _other_end(
    source: Path, tokenizer: tokenizers.Tokenizer, settings: dict[str, Any]
) -> str | None:
    """Name the first setting of what frames a text that is not as the tokenizer's own files say."""
    path = source / TOKENIZER_FILE
    taken, ends = _read(source / SETTINGS_FILE), read_ends(tokenizer, path)
    for end, token_id in (("bos", ends.front), ("eos", ends.back)):
        stated = settings.get(f"add_{end}_token")
        if isinstance(stated, bool) and stated not in (
            token_id is not None,
            taken.get(f"add_{end}_token"),
        ):
            return f"add_{end}_token {str(stated).lower()}"
    side = settings.get("truncation_side", "right")
    return None if side == taken.get("truncation_side", "right") else f"truncation_side {side}"
