"""What a tokenizer's files say: settings, special tokens, and what it puts around a text itself."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import tokenizers

from anna_export.errors import InputError, UnsupportedError
from anna_export.files.json_file import read_json
from anna_export.files.model_folders import MODEL
from anna_export.spec import EmbeddingSpec

TOKENIZER_FILE: Final = "tokenizer.json"
SETTINGS_FILE: Final = "tokenizer_config.json"
SPECIAL_TOKENS_FILE: Final = "special_tokens_map.json"
_REBUILDING: Final = ("LlamaTokenizer", "LlamaTokenizerFast")
_MISTRALS: Final = ("mistral", "ministral3")
# a text that every vocabulary has tokens for
_ANY_TEXT: Final = "a"


@dataclass(frozen=True, slots=True)
class Ends:
    """What a tokenizer's post-processor puts around a text; None for nothing."""

    front: int | None
    back: int | None


def read_ends(tokenizer: tokenizers.Tokenizer, path: Path) -> Ends:
    """Ask a tokenizer what it puts around a text.

    Raises:
        UnsupportedError: If that is more than a token in front and one behind.
    """
    encoding = tokenizer.encode(_ANY_TEXT)
    text = [index for index, added in enumerate(encoding.special_tokens_mask) if not added]
    if not text:
        raise InputError(f"expected a token for {_ANY_TEXT!r}, found none in {path}")
    front, back = encoding.ids[: text[0]], encoding.ids[text[-1] + 1 :]
    if len(front) > 1 or len(back) > 1 or len(text) != text[-1] - text[0] + 1:
        raise UnsupportedError(
            "expected at most one token in front of a text and one behind it, found the "
            f"post-processor of {path} making {' '.join(encoding.tokens)}"
        )
    return Ends(front[0] if front else None, back[0] if back else None)


def read_settings(folder: Path) -> dict[str, Any]:
    """Read a tokenizer's settings, as transformers does.

    Values of special_tokens_map.json replace those of tokenizer_config.json where that has no
    added_tokens_decoder, and else fill in what it leaves out.

    Source: PreTrainedTokenizerBase._from_pretrained of transformers 5.23.
    """
    settings = read_json(folder / SETTINGS_FILE)
    path = folder / SPECIAL_TOKENS_FILE
    tokens = read_json(path) if path.exists() else {}
    return tokens | settings if "added_tokens_decoder" in settings else settings | tokens


def add_stated_tokens(tokenizer: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    """Give a tokenizer the tokens that its settings state, as transformers does when it opens it.

    Those of added_tokens_decoder replace what tokenizer.json says of them; special tokens that
    are named elsewhere are added where the tokenizer has none of that name.

    Source: TokenizersBackend.__init__ and PreTrainedTokenizerBase._from_pretrained of
    transformers 5.23.
    """
    stated = settings.get("added_tokens_decoder") or {}
    tokens = [_added_token(token) for _, token in sorted(stated.items(), key=lambda at: int(at[0]))]
    present = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([token for token in tokens if repr(token) not in present])
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    by_name = {key: token for key, token in settings.items() if key.endswith("_token")}
    named = [*by_name.values(), *(extra.values() if isinstance(extra, dict) else extra)]
    for token in named:
        if isinstance(token, str | dict):
            added = _added_token(token)
            # one that is named in its role is special whatever its object says
            added.special |= token in by_name.values()
            contents = {at.content for at in tokenizer.get_added_tokens_decoder().values()}
            if added.content not in contents:
                tokenizer.add_tokens([added])


def _added_token(token: str | dict[str, Any]) -> tokenizers.AddedToken:
    """Return a token that is written as its name, which is special, or as an object."""
    if isinstance(token, str):
        return tokenizers.AddedToken(token, special=True)
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return tokenizers.AddedToken(**{name: token[name] for name in names if name in token})


def truncation_side(path: Path, settings: dict[str, Any]) -> Literal["right", "left"]:
    """Return the side at which a long text is cut.

    Where the settings are silent, transformers takes it from the truncation of tokenizer.json
    (TokenizersBackend.__init__, 5.23), though it takes no length from there.

    Raises:
        InputError: If it is neither right nor left.
    """
    side = settings.get("truncation_side")
    if side is None:
        truncation = tokenizers.Tokenizer.from_file(str(path)).truncation
        side = "right" if truncation is None else truncation["direction"]
    sides: dict[Any, Literal["right", "left"]] = {"right": "right", "left": "left"}
    if side not in sides:
        raise InputError(
            f"expected a truncation_side of right or left in {path.parent / SETTINGS_FILE}, found "
            f"{side!r}; correct it"
        )
    return sides[side]


def special_id(
    tokenizer: tokenizers.Tokenizer, settings: dict[str, Any], kind: str, *folders: Path
) -> int | None:
    """Return the id of the bos, eos or pad token.

    Args:
        tokenizer: The vocabulary.
        settings: Where it is named, as of `read_settings`.
        kind: "bos", "eos" or "pad".
        folders: Where config.json may have its id, if it is named nowhere.
    """
    token = settings.get(f"{kind}_token")
    content = token.get("content") if isinstance(token, dict) else token
    if isinstance(content, str):
        return tokenizer.token_to_id(content)
    for path in (folder / "config.json" for folder in folders):
        ids = read_json(path).get(f"{kind}_token_id") if path.exists() else None
        if isinstance(ids, list) and len(ids) == 1:
            ids = ids[0]
        if isinstance(ids, int) and tokenizer.id_to_token(ids) is not None:
            return ids
    return None


def require_taken_whole(
    tokenizer: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any], model: Path
) -> None:
    """Refuse a tokenizer.json that transformers takes the vocabulary of alone.

    Its LlamaTokenizer makes normaliser and pre-tokenizer itself, but in a folder whose config.json
    has a model_type of Mistral's it is passed over. Adapters' folders have no config.json.

    Source: AutoTokenizer.from_pretrained and LlamaTokenizer.__init__ of transformers 5.23.

    Raises:
        InputError: If a normaliser would be dropped.
    """
    name = settings.get("tokenizer_class")
    if name not in _REBUILDING or tokenizer.normalizer is None or _is_mistrals(folder):
        return
    remedy = f"copy {model / MODEL} there"
    if not _is_mistrals(model):
        remedy = (
            "write the tokenizer as transformers reads it, with AutoTokenizer.from_pretrained"
            f"({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    raise InputError(
        f"expected a normaliser that transformers reads, found it drop that of "
        f"{folder / TOKENIZER_FILE} for tokenizer_class {name}; {remedy}"
    )


def _is_mistrals(folder: Path) -> bool:
    path = folder / MODEL
    return path.exists() and read_json(path).get("model_type") in _MISTRALS


def require_rows(
    tokenizer: tokenizers.Tokenizer, path: Path, spec: EmbeddingSpec, pad_id: int | None
) -> None:
    """Hold every token but the one that pads to a row of the model's embedding.

    Raises:
        InputError: Naming those without.
    """
    added = tokenizer.get_added_tokens_decoder()
    beyond = {
        token_id: token
        for token, token_id in tokenizer.get_vocab().items()
        # a special token is plain text in a text: nothing but padding makes one of this
        if token_id >= spec.vocab_size
        and not (token_id == pad_id and token_id in added and added[token_id].special)
    }
    if beyond:
        first = min(beyond)
        raise InputError(
            f"expected a row in the model's embedding of {spec.vocab_size} for every token, found "
            f"none for {beyond[first]!r} ({first}), and {len(beyond)} such in all, in {path}: the "
            "base was resized in training, and no embedding of that size came with it; resize and "
            "save the base, or take the tokens out"
        )


def uncut_json(path: Path) -> str:
    """Return a tokenizer.json without padding and truncation.

    They are what the last call had set when it was saved, not the model's: trainers leave them in
    it, and every other reader but transformers and sentence-transformers goes by them.
    """
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    if not (content.get("truncation") or content.get("padding")):
        return text
    content |= {"truncation": None, "padding": None}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def framed_json(path: Path, front_ids: Sequence[int], back_ids: Sequence[int]) -> str:
    """Return a tokenizer.json that by itself puts these tokens around a text, and cuts none.

    Args:
        path: The tokenizer.json to start from, whose post-processor is replaced: but for special
            tokens, that changes offsets, not ids.
        front_ids: What stands in front of every text.
        back_ids: What stands behind every text.
    """
    content = json.loads(uncut_json(path))
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    names = {token_id: tokenizer.id_to_token(token_id) for token_id in (*front_ids, *back_ids)}

    def piece(token_id: int, text: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": names[token_id], "type_id": text}}

    def around(sequence: str, text: int) -> list[dict[str, Any]]:
        middle = {"Sequence": {"id": sequence, "type_id": text}}
        front = [piece(token_id, text) for token_id in front_ids]
        return [*front, middle, *(piece(token_id, text) for token_id in back_ids)]

    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            name: {"id": name, "ids": [token_id], "tokens": [name]}
            for token_id, name in names.items()
        },
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
