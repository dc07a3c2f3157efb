"""From the GGUF to an ordinary folder: configuration, bf16 weights and tokenizer of `gemma3_text`.

The tokens are held to sentencepiece, over the vocabulary and scores that the GGUF itself has.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from transformers import AutoModelForCausalLM, AutoTokenizer

from anna_export.console.quiet import quiet_libraries
from anna_export.errors import InputError
from demo.real.packages import GGUF, importable

MAX_TOKENS: Final = 512
# What Google's configuration of the 270M says; a GGUF has no field for some of it.
PUBLISHED: Final = {
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 2048,
    "vocab_size": 262_144,
    "max_position_embeddings": 32_768,
    "sliding_window": 512,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
}
ROTARY_BASES: Final = {"sliding_attention": 10_000.0, "full_attention": 1_000_000.0}
_ODD_TEXTS: Final = (
    "",
    "  two leading, one trailing ",
    "Hello  world\n\n  foo\tbar\r\n",
    "naïve café, 日本語 and 한국어, עברית",
    "🙂👩‍👩‍👧 emoji, ﬁ, a\u00a0b, ▁odd",
    "x = [1,\n     2]  # 3.14159",
    "<div><b>bold</b></div>",
)
_BPE, _USER_DEFINED = 2, 4  # sentencepiece's numbers


def convert(gguf: Path, packages: Path, folder: Path, texts: Sequence[str]) -> None:
    """Write the folder.

    Args:
        gguf: The folder with the GGUF.
        packages: That with the library that reads it.
        folder: Written; does not exist.
        texts: The tokens of these, beside odd ones, are held to sentencepiece.

    Raises:
        InputError: If configuration or tokens are not the published ones.
    """
    with quiet_libraries(), importable(packages):
        model = AutoModelForCausalLM.from_pretrained(gguf, gguf_file=GGUF, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(gguf, gguf_file=GGUF)
        pieces = _sentencepiece(gguf / GGUF)
    check_tokens(tokenizer, pieces, [*_ODD_TEXTS, *texts])
    _make_plain(model)
    check_config(model.config)
    tokenizer.model_max_length = MAX_TOKENS
    with quiet_libraries():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def check_config(config: Any) -> None:
    """Hold a configuration to the published one.

    Raises:
        InputError: Naming the first field that differs.
    """
    values = {name: getattr(config, name) for name in PUBLISHED}
    values["rope_theta"] = {
        kind: config.rope_parameters[kind]["rope_theta"] for kind in ROTARY_BASES
    }
    for name, wanted in {**PUBLISHED, "rope_theta": ROTARY_BASES}.items():
        if values[name] != wanted:
            raise InputError(
                f"expected {name} {wanted} as Google publishes it, found {values[name]} in the "
                "configuration that transformers reads from the GGUF"
            )


def check_tokens(tokenizer: Any, pieces: SentencePieceProcessor, texts: Sequence[str]) -> None:
    """Hold a tokenizer to sentencepiece.

    Raises:
        InputError: Naming the first text whose ids differ.
    """
    for text in texts:
        ids, wanted = tokenizer(text, add_special_tokens=False).input_ids, pieces.encode(text)
        if ids != wanted:
            raise InputError(f"expected ids {wanted} of {text!r}, found {ids}")


def _make_plain(model: Any) -> None:
    """Let weights that are no longer quantised be saved, which transformers refuses.

    The GGUF holds 1e-6 as float32; the published number is a double.
    """
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.1e}")


def _sentencepiece(gguf: Path) -> SentencePieceProcessor:
    """Return sentencepiece's own tokenizer over the vocabulary that is in a GGUF."""
    from gguf import GGUFReader  # importable inside `importable` alone

    fields = GGUFReader(gguf).fields
    tokens, scores, kinds = (
        fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores", "token_type")
    )
    proto = sentencepiece_model_pb2.ModelProto()
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.byte_fallback = _BPE, True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = range(4)
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        # a GGUF has spaces in the tokens that sentencepiece takes before all others
        piece = token.replace(" ", "▁") if kind == _USER_DEFINED else token
        proto.pieces.add(piece=piece, score=score, type=int(kind))
    return SentencePieceProcessor(model_proto=proto.SerializeToString())
