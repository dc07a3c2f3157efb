"""What a graph's forms, inputs and output are called."""

from typing import Final

# forms: standard operators for every runtime, and lowered to what ONNX Runtime computes on a CPU
CANONICAL: Final = "canonical"
CPU: Final = "cpu"

INPUT_IDS: Final = "input_ids"
ATTENTION_MASK: Final = "attention_mask"
PREFIX_KEYS: Final = "prefix_keys"
PREFIX_VALUES: Final = "prefix_values"
PROMPT_TOKENS: Final = "prompt_tokens"
EMBEDDING: Final = "sentence_embedding"
