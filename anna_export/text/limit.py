"""The longest sequence of a model folder: the first limit that it gives."""

from pathlib import Path
from typing import Any

from anna_export.errors import InputError
from anna_export.files.json_file import read_json
from anna_export.spec import EmbeddingSpec

# where sentence-transformers keeps the longest sequence
LIMIT_FILE = "sentence_bert_config.json"
# below it, framing and a prompt leave no room for a text
MIN_TOKENS = 8


def find_limit_file(folder: Path, base: Path | None) -> Path | None:
    """Return the LIMIT_FILE that counts: beside the tokenizer, else the model's, else None."""
    paths = [parent / LIMIT_FILE for parent in (folder, base) if parent is not None]
    return next((path for path in paths if path.exists()), None)


def longest_sequence(
    folder: Path, model: Path, settings: dict[str, Any], spec: EmbeddingSpec, max_tokens: int | None
) -> int:
    """Return the most tokens of a sequence, framing included.

    Args:
        folder: The tokenizer's.
        model: The model's.
        settings: The tokenizer's, as tokenizer_config.json has them.
        spec: The model's numbers.
        max_tokens: What was asked for; None takes the folder's own limit.

    Raises:
        InputError: If it is out of range.
    """
    if max_tokens is not None:
        if not MIN_TOKENS <= max_tokens <= spec.max_positions:
            raise InputError(
                f"expected max tokens between {MIN_TOKENS} and the model's {spec.max_positions} "
                f"positions, found {max_tokens}"
            )
        return max_tokens
    limit, source = _limit(folder, model, settings, spec)
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= MIN_TOKENS:
        raise InputError(
            f"expected at least {MIN_TOKENS} tokens as {source}, found {limit!r}; correct it or "
            "give `max_tokens`"
        )
    return int(min(limit, spec.max_positions))


def _limit(
    folder: Path, model: Path, settings: dict[str, Any], spec: EmbeddingSpec
) -> tuple[Any, str]:
    """Return the first limit that is given, as it is written, and where."""
    # sentence-transformers writes the limit to the first place up to version 5, since then to the
    # second, where transformers writes 1e30 for none
    path = find_limit_file(folder, model)
    trained = read_json(path).get("max_seq_length") if path is not None else None
    if trained is not None:
        return trained, f"max_seq_length in {path}"
    tokenizer_limit = settings.get("model_max_length")
    unlimited = isinstance(tokenizer_limit, int | float) and tokenizer_limit > spec.max_positions
    if tokenizer_limit is not None and not unlimited:
        return tokenizer_limit, f"model_max_length in {folder / 'tokenizer_config.json'}"
    if spec.sliding_window is not None:
        return spec.sliding_window, "sliding_window in config.json"
    return spec.max_positions, "max_position_embeddings in config.json"
