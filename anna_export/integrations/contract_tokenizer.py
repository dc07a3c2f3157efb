"""An artifact's tokenizer as an object of transformers, whose ids are the framing's."""

from pathlib import Path

import transformers
from tokenizers.processors import TemplateProcessing

from anna_export.text.framing import TokenFraming, load_tokenizer


def contract_tokenizer(folder: Path, framing: TokenFraming) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of transformers that frames, pads and cuts as the artifact does.

    What its tokenizer_config.json says is not asked: with the framing everything is decided.

    Args:
        folder: The artifact's.
        framing: What stands around a text, and where it is cut.

    Raises:
        InputError: If the tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(folder)

    def name(token_id: int | None) -> str | None:
        return None if token_id is None else tokenizer.id_to_token(token_id)

    ends = [(name(token_id), token_id) for token_id in (*framing.front_ids, *framing.back_ids)]
    front, back = (
        [name(token_id) for token_id in ids] for ids in (framing.front_ids, framing.back_ids)
    )
    tokenizer.post_processor = TemplateProcessing(
        single=[*front, "$A", *back],
        pair=[*front, "$A", *back, *front, "$B:1", *back],
        special_tokens=ends,
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=name(framing.bos_id),
        eos_token=name(framing.eos_id),
        pad_token=name(framing.pad_id),
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=framing.max_tokens,
        padding_side="right",
        truncation_side=framing.truncation_side,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
