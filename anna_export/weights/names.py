"""Names of tensors: what wraps a model in training leaves its mark in them."""

import re
from collections.abc import Callable, Iterable
from typing import Final

from anna_export.errors import DamagedError
from anna_export.weights.safetensors_files import StoredTensor

# Parts of a name, at any place of it: torch.compile, data parallel training, FSDP of two ages,
# activation checkpointing, and Lightning's strategies.
_WRAPPERS: Final = re.compile(
    r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module|"
    r"_forward_module)\."
)
# A model's own state_dict() keeps the adapter's name, which peft's save_pretrained takes out.
_ADAPTERS_NAME: Final = re.compile(
    r"(\.lora_(?:embedding_)?[AB]|\.trainable_tokens_delta)\.(?!weight$|bias$)[^.]+"
)
_SAVED_MODULE: Final = re.compile(r"\.modules_to_save(?:\.(?!weight$|bias$)[^.]+)?")
# It also keeps what a saved module and trained rows stand in for.
_REPLACED: Final = (".original_module.", ".trainable_tokens_original.")
# What peft's model stands in front of the names of the one it wraps.
_PEFT: Final = "base_model.model."
# No part of an embedding: the language head, and tables that older versions stored.
_LANGUAGE_HEAD = "lm_head."
_ROTARY_TABLE = ".rotary_emb.inv_freq"


def trained_name(key: str) -> str:
    """Return a tensor's name as its model had it in training, with or without a language head."""
    return _WRAPPERS.sub("", key).removeprefix(_PEFT)


def weight_name(key: str) -> str:
    """Return a tensor's name in its decoder's state dict, whatever wraps that model."""
    return trained_name(key).removeprefix("model.")


def saved_name(key: str) -> str:
    """Return the name that peft's save_pretrained gives a tensor of an adapter."""
    plain = _SAVED_MODULE.sub("", _ADAPTERS_NAME.sub(r"\1", trained_name(key)))
    return f"{_PEFT}{plain}"


def adapter_name(key: str) -> str:
    """Return that name without what is around the model."""
    return weight_name(saved_name(key))


def is_replaced(key: str) -> bool:
    """Say whether a tensor is what a saved module, or trained rows, stand in for."""
    return any(part in f"{key}." for part in _REPLACED)


def by_name(
    tensors: Iterable[StoredTensor], rename: Callable[[str], str] = weight_name
) -> dict[str, StoredTensor]:
    """Return tensors by name, without what is no part of an embedding.

    Raises:
        DamagedError: If two tensors have one name, or one is empty.
        UnsupportedError: If one is not stored as fp32, fp16 or bf16.
    """
    named: dict[str, StoredTensor] = {}
    for tensor in tensors:
        name = rename(tensor.key)
        if is_replaced(name) or name.startswith(_LANGUAGE_HEAD) or name.endswith(_ROTARY_TABLE):
            continue
        if other := named.get(name):
            raise DamagedError(
                f"expected one tensor for {name}, found {other.key} in {other.path} "
                f"and {tensor.key} in {tensor.path}; save it again with save_pretrained"
            )
        tensor.require_float()
        if tensor.shape == (0,):
            raise DamagedError(
                f"expected numbers in {tensor.key}, found it empty in {tensor.path}: DeepSpeed "
                "ZeRO-3 had it in parts when it was saved; gather them with "
                "stage3_gather_16bit_weights_on_model_save or zero_to_fp32.py and save it again"
            )
        named[name] = tensor
    return named
