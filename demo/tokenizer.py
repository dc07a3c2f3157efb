"""Mistral v0.1's tokenizer, converted from the sentencepiece model that mistral-common carries.

transformers' own converter (5.23) adds no `<s>` and `</s>` and splits runs of spaces differently
from sentencepiece, so the few lines are here; the tests hold them to equal ids.
"""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from anna_export.errors import InputError, MissingError

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
# As e5-mistral does: padding then is a token that the model has trained on. It is on the right, so
# a causal model never sees it from a real token.
PAD = EOS

_SPACE = "▁"
_MODEL_FILE = "tokenizer.model.v1"


def load_sentencepiece() -> SentencePieceProcessor:
    """Load the 32000 pieces of Mistral v0.1 that mistral-common carries.

    Raises:
        MissingError: If the installed mistral-common has no such file.
    """
    source = resources.files("mistral_common") / "data" / _MODEL_FILE
    if not source.is_file():
        raise MissingError(
            f"expected {_MODEL_FILE} in the package mistral-common, found none; "
            "install mistral-common 1.13 or newer"
        )
    return SentencePieceProcessor(model_proto=source.read_bytes())


def build_tokenizer(pieces: SentencePieceProcessor, max_tokens: int) -> PreTrainedTokenizerFast:
    """Convert a byte-fallback BPE sentencepiece model into a fast tokenizer.

    Special tokens written in a text are plain text, as in sentencepiece.

    Args:
        pieces: The sentencepiece model; ids are kept.
        max_tokens: The longest sequence, `<s>` and `</s>` included.

    Returns:
        A tokenizer that puts `<s>` first and `</s>` last and pads on the right.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_fallback_bpe(pieces),
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        add_bos_token=True,
        add_eos_token=True,
        padding_side="right",
        truncation_side="right",
        model_max_length=max_tokens,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def _byte_fallback_bpe(pieces: SentencePieceProcessor) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(
            vocab={pieces.id_to_piece(index): index for index in range(len(pieces))},
            merges=_merges(pieces),
            unk_token=UNK,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", left=1),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        pair=f"{BOS} $A {EOS} {BOS} $B {EOS}",
        special_tokens=[(BOS, pieces.bos_id()), (EOS, pieces.eos_id())],
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (UNK, BOS, EOS)]
    )
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer of build_tokenizer as a Hugging Face tokenizer folder."""
    # what the last call padded and cut to would be saved with it
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    # transformers 5 leaves out what the post-processor says too; other readers look here
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"add_bos_token": True, "add_eos_token": True}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_exact(
    tokenizer: PreTrainedTokenizerFast, pieces: SentencePieceProcessor, texts: Sequence[str]
) -> None:
    """Compare untruncated token ids with sentencepiece's.

    Raises:
        InputError: If a text's ids differ, framed by `<s>` and `</s>`.
    """
    converted = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    expected = pieces.encode(list(texts), add_bos=True, add_eos=True)
    for text, ids, wanted in zip(texts, converted, expected, strict=True):
        if ids != wanted:
            raise InputError(
                f"expected sentencepiece's token ids {wanted[:16]}, found {ids[:16]} for "
                f"{text[:80]!r}; rebuild the tokenizer with demo.tokenizer"
            )


def _merges(pieces: SentencePieceProcessor) -> list[tuple[str, str]]:
    """Return every way to join two pieces into a third, best score of the joined piece first.

    Runs of spaces share one score; of equal scores sentencepiece takes the leftmost, which in such
    a run is the join with the longest left side.
    """
    scores = {pieces.id_to_piece(index): pieces.get_score(index) for index in range(len(pieces))}
    ranked = [
        (-score, -cut, (joined[:cut], joined[cut:]))
        for joined, score in scores.items()
        for cut in range(1, len(joined))
        if joined[:cut] in scores and joined[cut:] in scores
    ]
    return [merge for _, _, merge in sorted(ranked)]
