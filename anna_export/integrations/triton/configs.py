"""Triton's config.pbtxt files, as plain values and as text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from anna_export.graph.names import ATTENTION_MASK, EMBEDDING, INPUT_IDS

TEXT = "text"
_TOKENS = (INPUT_IDS, ATTENTION_MASK)


class Word(str):
    """A value that is a name of the schema, and not a string."""


def pbtxt(values: Mapping[str, Any], indent: str = "") -> str:
    """Return values in protobuf's text format; a list is one entry after the other."""
    lines = []
    for name, value in values.items():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, Mapping):
                lines.append(f"{indent}{name} {{\n{pbtxt(entry, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(entry)}\n")
    return "".join(lines)


def _scalar(value: object) -> str:
    if isinstance(value, Word):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value)


def tokenizer_config(name: str, batch: int, delay_us: int) -> dict[str, Any]:
    """Describe the tokenizer: one text a row in, ids and mask out."""
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": batch,
        "input": [_tensor(TEXT, "TYPE_STRING", [1])],
        "output": [_tensor(tokens, "TYPE_INT64", [-1]) for tokens in _TOKENS],
        "dynamic_batching": {"max_queue_delay_microseconds": delay_us},
        "instance_group": [{"kind": Word("KIND_CPU"), "count": 1}],
    }


def encoder_config(
    name: str, backend: Mapping[str, str], batch: int, dim: int, delay_us: int, kind: str
) -> dict[str, Any]:
    """Describe the model: ids and mask in, vectors out."""
    return {
        "name": name,
        **backend,
        "max_batch_size": batch,
        "input": [_tensor(tokens, "TYPE_INT64", [-1]) for tokens in _TOKENS],
        "output": [_tensor(EMBEDDING, "TYPE_FP32", [dim])],
        "dynamic_batching": {
            "preferred_batch_size": sorted({max(1, batch // 4), batch}),
            "max_queue_delay_microseconds": delay_us,
        },
        "instance_group": [{"kind": Word(kind), "count": 1}],
    }


def ensemble_config(
    name: str, tokenizer: str, encoder: str, batch: int, dim: int
) -> dict[str, Any]:
    """Describe both as one: a text in, its vector out."""
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": batch,
        "input": [_tensor(TEXT, "TYPE_STRING", [1])],
        "output": [_tensor(EMBEDDING, "TYPE_FP32", [dim])],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": tokenizer,
                    "model_version": -1,
                    "input_map": [_maps(TEXT)],
                    "output_map": [_maps(tokens) for tokens in _TOKENS],
                },
                {
                    "model_name": encoder,
                    "model_version": -1,
                    "input_map": [_maps(tokens) for tokens in _TOKENS],
                    "output_map": [_maps(EMBEDDING)],
                },
            ]
        },
    }


def _tensor(name: str, kind: str, dims: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "data_type": Word(kind), "dims": list(dims)}


def _maps(name: str) -> dict[str, str]:
    return {"key": name, "value": name}
