"""The forward pass of training: one shared prefix, then many texts behind it.

The examples in front of a group's queries are the same, and the model is causal: their keys and
values are computed once and used by every query, and the queries' gradients flow back through them.
The layers are transformers' own; only what they attend to is arranged here.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from anna_kernels import RMSNorm, last_token_pool_normalise
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.models.mistral.modeling_mistral import (
    MistralAttention,
    MistralDecoderLayer,
    MistralModel,
    rotate_half,
)

KeysValues = tuple[Tensor, Tensor]  # each (B, K, S, head_dim)
Rotary = tuple[Tensor, Tensor]  # cos and sin, each (1, S, head_dim)


class _Cache:
    """Stands where a layer looks for its cache: puts a prefix in front, stores the new states."""

    def __init__(self, past: KeysValues | None) -> None:
        self.past = past

    def update(self, keys: Tensor, values: Tensor, *_: Any) -> KeysValues:
        self.states = keys, values
        return self.states if self.past is None else _joined(self.past, self.states)


def embed(
    model: MistralModel,
    texts: Sequence[Sequence[int]],
    prefix: Sequence[int] = (),
    *,
    recompute: bool = False,
) -> Tensor:
    """Return (B, D) float32 unit vectors of texts that stand behind one prefix.

    Args:
        model: A MistralModel, with or without LoRA in its linear layers.
        texts: B rows of token ids without the prefix, each one id or more, EOS last.
        prefix: P token ids that stand in front of every text; none: texts start at position 0.
        recompute: Whether layers' activations are computed again in the backward pass, which
            saves their memory (activation checkpointing).
    """
    device = model.embed_tokens.weight.device
    lengths = torch.tensor([len(text) for text in texts], device=device)
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for text, row in zip(texts, ids, strict=True):
        row[: len(text)] = torch.tensor(text)
    behind: Sequence[KeysValues | None] = [None] * len(model.layers)
    if prefix:
        behind = _keys_and_values(model, torch.tensor([list(prefix)], device=device), recompute)
    # No mask for padding: it is on the right, so under causal attention no real token sees it.
    hidden, rotary, run = _start(model, ids.to(device), len(prefix), recompute)
    for layer, past in zip(model.layers[:-1], behind[:-1], strict=True):
        hidden, _ = run(layer, hidden, past)
    window = model.config.sliding_window
    last = _last_token(model.layers[-1], hidden, lengths - 1, rotary, behind[-1], window)
    norm = RMSNorm(model.norm.weight, model.norm.variance_epsilon)
    return last_token_pool_normalise(last[:, None], torch.zeros_like(lengths), norm=norm)


def _keys_and_values(model: MistralModel, ids: Tensor, recompute: bool) -> list[KeysValues]:
    """Return each layer's keys and values of (1, P) ids; of the last layer no more is computed."""
    hidden, rotary, run = _start(model, ids, 0, recompute)
    past_states = []
    for layer in model.layers[:-1]:
        hidden, layer_states = run(layer, hidden, None)
        past_states.append(layer_states)
    last = model.layers[-1]
    return [*past_states, _own_states(last.self_attn, last.input_layernorm(hidden), rotary)]


def _start(
    model: MistralModel, ids: Tensor, before: int, recompute: bool
) -> tuple[Tensor, Rotary, Callable[..., tuple[Tensor, KeysValues]]]:
    """Return token states, their rotary tables, and what runs a layer on such states."""
    hidden = model.embed_tokens(ids)
    positions = torch.arange(before, before + ids.shape[1], device=ids.device)[None]
    rotary = model.rotary_emb(hidden, positions)
    mask = _mask(ids.shape[1], before, model.config.sliding_window, ids.device)

    def run(
        layer: MistralDecoderLayer, hidden: Tensor, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        cache = _Cache(past)
        hidden = layer(
            hidden, attention_mask=mask, position_embeddings=rotary, past_key_values=cache
        )
        return hidden, cache.states

    if recompute:
        return hidden, rotary, partial(checkpoint, run, use_reentrant=False)
    return hidden, rotary, run


def _last_token(
    layer: MistralDecoderLayer,
    hidden: Tensor,
    last: Tensor,
    rotary: Rotary,
    past: KeysValues | None,
    window: int | None,
) -> Tensor:
    """Return (B, D): what a layer makes of each row's last token; nothing else is computed.

    Args:
        layer: The model's last layer.
        hidden: (B, S, D) states.
        last: (B,) index of each row's last token.
        rotary: cos and sin of the tokens, (1, S, head_dim).
        past: Keys and values that stand in front of every row.
        window: How many tokens are seen, the token itself included; None: all before it.
    """
    attention, rows = layer.self_attn, torch.arange(len(hidden), device=hidden.device)
    normed = layer.input_layernorm(hidden)
    states = _own_states(attention, normed, rotary)
    keys, values = states if past is None else _joined(past, states)
    heads = (len(hidden), 1, -1, attention.head_dim)
    queries = attention.q_proj(normed[rows, last]).view(heads).transpose(1, 2)
    turned = [table[0, last][:, None, None] for table in rotary]
    queries = queries * turned[0] + rotate_half(queries) * turned[1]
    positions = torch.arange(keys.shape[2], device=hidden.device)
    ends = (last + keys.shape[2] - hidden.shape[1])[:, None]
    visible = positions <= ends
    if window is not None:
        visible = visible & (positions > ends - window)
    mixed = functional.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=visible[:, None, None],
        scale=attention.scaling,
        enable_gqa=True,
    )
    hidden = hidden[rows, last] + attention.o_proj(mixed.flatten(1))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _own_states(attention: MistralAttention, normed: Tensor, rotary: Rotary) -> KeysValues:
    heads = (*normed.shape[:2], -1, attention.head_dim)
    keys = attention.k_proj(normed).view(heads).transpose(1, 2)
    values = attention.v_proj(normed).view(heads).transpose(1, 2)
    cos, sin = (table[:, None] for table in rotary)
    return keys * cos + rotate_half(keys) * sin, values


def _joined(past: KeysValues, states: KeysValues) -> KeysValues:
    """Put a prefix's keys and values in front of each row's own."""
    rows = len(states[0])
    keys, values = (
        torch.cat([before.expand(rows, -1, -1, -1), after], dim=2)
        for before, after in zip(past, states, strict=True)
    )
    return keys, values


def _mask(width: int, before: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return (1, 1, S, P + S): what each token sees; None for all that stand before it."""
    if not before and (window is None or width <= window):
        return None
    positions = torch.arange(before + width, device=device)
    query_positions = positions[before:, None]
    visible = positions <= query_positions
    if window is not None:
        visible = visible & (positions > query_positions - window)
    return visible[None, None]
