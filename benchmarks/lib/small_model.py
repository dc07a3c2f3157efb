"""A Mistral that a CPU serves well: 164 M parameters beside its embedding, random weights."""

from pathlib import Path

import torch
import transformers

from demo.tokenizer import build_tokenizer, load_sentencepiece, save_tokenizer

MAX_TOKENS = 8192


def write_small_model(folder: Path) -> None:
    """Write the model with seeded random weights in fp32, and Mistral v0.1's tokenizer."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        hidden_size=1024,
        intermediate_size=3584,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        vocab_size=32000,
        max_position_embeddings=MAX_TOKENS,
        sliding_window=None,
    )
    transformers.MistralModel(config).save_pretrained(folder)
    save_tokenizer(build_tokenizer(load_sentencepiece(), MAX_TOKENS), folder)
