"""A tokenizer's files as an artifact has them: for whoever loads them without this package.

By itself tokenizer.json frames a text as the artifact's framing says, so that `tokenizers`,
transformers, fastembed and the rest find the ids that the graph wants. What our own tokeniser adds
to that they have to do themselves: special tokens' names in a text, and prompts.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Final

from anna_export.files.atomic import write_text
from anna_export.text.framing import CONFIG_FILE, TOKENIZER_FILE, TokenFraming, load_tokenizer
from anna_export.text.tokenizer_files import framed_json, read_settings

_SPECIAL_TOKENS_FILE: Final = "special_tokens_map.json"
# sentencepiece's own, which C# reads; it frames nothing
_PIECES_FILE: Final = "tokenizer.model"
# settings of the model that change ids and that tokenizer.json does not hold; of the rest some cut
# a text (fastembed takes the smaller of model_max_length and max_length) or frame it again
_TAKEN_OVER: Final = ("split_special_tokens", "add_prefix_space")
# tokenizer.json as it is: LlamaTokenizer, in transformers 5 and in JavaScript, builds its own parts
_CLASS: Final = "PreTrainedTokenizerFast"


def write_tokenizer(source: Path, folder: Path, framing: TokenFraming) -> None:
    """Write the tokenizer of a model's folder anew, so that it frames a text as `framing` says.

    Raises:
        MissingError: If there is no tokenizer.json.
        InputError: If it cannot be read.
    """
    settings = read_settings(source)
    tokens = _special_tokens(source, settings, framing)
    text = framed_json(source / TOKENIZER_FILE, framing.front_ids, framing.back_ids)
    write_text(folder / TOKENIZER_FILE, text)
    taken_over = {name: settings[name] for name in _TAKEN_OVER if name in settings}
    config = taken_over | {
        **tokens,
        "tokenizer_class": _CLASS,
        "add_bos_token": framing.bos_id is not None,
        "add_eos_token": framing.eos_id is not None,
        "model_max_length": framing.max_tokens,
        "padding_side": "right",
        "truncation_side": framing.truncation_side,
        "clean_up_tokenization_spaces": False,
    }
    _write(folder / CONFIG_FILE, config)
    _write(folder / _SPECIAL_TOKENS_FILE, tokens)
    if (source / _PIECES_FILE).exists():
        shutil.copyfile(source / _PIECES_FILE, folder / _PIECES_FILE)


def _special_tokens(
    source: Path, settings: dict[str, Any], framing: TokenFraming
) -> dict[str, str]:
    """Return the special tokens by their roles: those that frame, else those the model names."""
    ids = {"bos_token": framing.bos_id, "eos_token": framing.eos_id, "pad_token": framing.pad_id}
    tokenizer = load_tokenizer(source)
    tokens: dict[str, str] = {}
    for role in (*ids, "unk_token"):
        stated = settings.get(role)
        name = stated.get("content") if isinstance(stated, dict) else stated
        if (token_id := ids.get(role)) is not None:
            name = tokenizer.id_to_token(token_id)
        if name is not None:
            tokens[role] = name
    return tokens


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
