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
# No part of an embedding: the language head, and tables that older versions stored.
_LANGUAGE_HEAD = "lm_head."
_ROTARY_TABLE = ".rotary_emb.inv_freq"


def trained_name(key: str) -> str:
    """Return a tensor's name as its model had it in training, with or without a language head."""
    return _WRAPPERS.sub("", key).removeprefix("base_model.model.")


def weight_name(key: str) -> str:
    """Return a tensor's name in a MistralModel's state dict, whatever wraps that model."""
    return trained_name(key).removeprefix("model.")


def adapter_name(key: str) -> str:
    """Return the name that peft's save_pretrained gives a tensor, without the model around it."""
    return _SAVED_MODULE.sub("", _ADAPTERS_NAME.sub(r"\1", weight_name(key)))


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
        if name.startswith(_LANGUAGE_HEAD) or name.endswith(_ROTARY_TABLE):
            continue
        if any(part in f"{name}." for part in _REPLACED):
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
