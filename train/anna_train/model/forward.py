"""The forward pass of training: one shared prefix, then many texts behind it.

The examples in front of a group's queries are the same. Where the model is causal, their keys and
values are computed once and used by every query, and the queries' gradients flow back through them.
The layers are transformers' own, of whichever family; only what they attend to is arranged here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.mistral.modeling_mistral import rotate_half

from anna_export.reference.head import apply_head, pooled_tokens
from anna_export.spec import EmbeddingSpec, PoolingMode, read_spec
from anna_export.spec.family import FULL_ATTENTION, SLIDING_ATTENTION

KeysValues = tuple[Tensor, Tensor]  # each (B, K, S, head_dim)
Rotary = tuple[Tensor, Tensor]  # cos and sin, each (1, S, head_dim) or (B, 1, head_dim)


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder, and what makes a text's states one vector.

    Args:
        model: transformers' decoder, with or without LoRA in its linear layers.
        spec: Its numbers, and what stands behind it.
        head_weights: Those of the spec's Dense modules, by name; they are not trained.
    """

    model: PreTrainedModel
    spec: EmbeddingSpec
    head_weights: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        """Return a decoder in memory, whose last token's state is the vector."""
        with TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            return cls(model, read_spec(Path(folder)))


class _Cache:
    """Stands where a layer looks for its cache: puts a prefix in front, stores the new states."""

    def __init__(self, past: KeysValues | None) -> None:
        self.past = past

    def update(self, keys: Tensor, values: Tensor, *_: Any) -> KeysValues:
        self.states = keys, values
        return self.states if self.past is None else _joined(self.past, self.states)


class _Complete:
    """Stands there too, and holds all keys and values, those of the states at work as well."""

    def __init__(self, states: KeysValues) -> None:
        self.states = states

    def update(self, *_: Any) -> KeysValues:
        return self.states


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Tokens on their way through the layers; rotary tables and masks by the kind of a layer."""

    decoder: Decoder
    positions: Tensor  # (1, S)
    dtype: torch.dtype  # of attention's scores
    rotary: Mapping[str, Rotary]
    masks: Mapping[str, Tensor | None]
    recompute: bool

    def run(self, index: int, hidden: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """Return what a layer makes of (B, S, D) states, and their keys and values there."""
        layer, kind = self.decoder.model.layers[index], _kind(self.decoder.spec, index)

        def of_layer(hidden: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
            cache = _Cache(past)
            hidden = layer(
                hidden,
                attention_mask=self.masks[kind],
                position_ids=self.positions,
                position_embeddings=self.rotary[kind],
                past_key_values=cache,
            )
            return hidden, cache.states

        if self.recompute:
            states: tuple[Tensor, KeysValues] = checkpoint(
                of_layer, hidden, past, use_reentrant=False
            )
            return states
        return of_layer(hidden, past)


def embed(
    decoder: Decoder,
    texts: Sequence[Sequence[int]],
    prefix: Sequence[int] = (),
    *,
    prompt_tokens: int = 0,
    recompute: bool = False,
) -> Tensor:
    """Return (B, D) float32 unit vectors of texts that stand behind one prefix.

    Args:
        decoder: What computes them.
        texts: B rows of token ids without the prefix, each one id or more.
        prefix: P token ids that stand in front of every text, of a model that takes a prefix;
            none: texts start at position 0.
        prompt_tokens: How many of a row's tokens, the prefix's among them, are its prompt's, where
            pooling leaves that out.
        recompute: Whether layers' activations are computed again in the backward pass, which
            saves their memory (activation checkpointing).
    """
    model, spec = decoder.model, decoder.spec
    lengths = torch.tensor([len(text) for text in texts], device=model.device)
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for text, row in zip(texts, ids, strict=True):
        row[: len(text)] = torch.tensor(text)
    behind: Sequence[KeysValues | None] = [None] * spec.layers
    if prefix:
        behind = _keys_and_values(decoder, torch.tensor([list(prefix)]), recompute)
    hidden, tokens = _start(decoder, ids, lengths, len(prefix), recompute)
    for index in range(spec.layers - 1):
        hidden, _ = tokens.run(index, hidden, behind[index])
    if spec.head.pooling is PoolingMode.LAST:
        hidden = _last_token(tokens, hidden, lengths - 1, behind[-1])
        pooled = torch.ones_like(lengths, dtype=torch.bool)[:, None]
    else:
        hidden, _ = tokens.run(spec.layers - 1, hidden, behind[-1])
        left_out = torch.full_like(lengths, prompt_tokens - len(prefix))
        positions = torch.arange(ids.shape[1], device=model.device)
        pooled = pooled_tokens(spec.head, positions, lengths, left_out)
    # the loss compares directions
    head = replace(spec.head, normalize=True)
    with torch.autocast(model.device.type, enabled=False):
        return apply_head(head, decoder.head_weights, model.norm(hidden), pooled)


def _keys_and_values(decoder: Decoder, ids: Tensor, recompute: bool) -> list[KeysValues]:
    """Return each layer's keys and values of (1, P) ids; of the last layer no more is computed."""
    lengths = torch.tensor([ids.shape[1]], device=decoder.model.device)
    hidden, tokens = _start(decoder, ids, lengths, 0, recompute)
    past_states = []
    for index in range(decoder.spec.layers - 1):
        hidden, layer_states = tokens.run(index, hidden, None)
        past_states.append(layer_states)
    return [*past_states, _last_layers_states(tokens, hidden)]


def _start(
    decoder: Decoder, ids: Tensor, lengths: Tensor, before: int, recompute: bool
) -> tuple[Tensor, _Tokens]:
    """Return token states, and what takes them through the layers."""
    model, spec, width = decoder.model, decoder.spec, ids.shape[1]
    hidden = model.embed_tokens(ids.to(model.device))
    device, dtype = model.device.type, hidden.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    positions = torch.arange(before, before + width, device=model.device)[None]
    rotary, masks = {}, {}
    for index in range(spec.layers):
        if (kind := _kind(spec, index)) in masks:
            continue
        by_kind = (kind,) if spec.of_family.rotary_by_layer_type else ()
        rotary[kind] = model.rotary_emb(hidden, positions, *by_kind)
        masks[kind] = _mask(spec, spec.window(index), positions, before + width, lengths, dtype)
    return hidden, _Tokens(decoder, positions, dtype, rotary, masks, recompute)


def _kind(spec: EmbeddingSpec, index: int) -> str:
    return FULL_ATTENTION if spec.window(index) is None else SLIDING_ATTENTION


def _last_token(tokens: _Tokens, hidden: Tensor, last: Tensor, past: KeysValues | None) -> Tensor:
    """Return (B, 1, D): what the last layer makes of each row's last token, and of no other.

    Args:
        tokens: What is at work.
        hidden: (B, S, D) states.
        last: (B,) index of each row's last token.
        past: Keys and values that stand in front of every row.
    """
    spec, index = tokens.decoder.spec, tokens.decoder.spec.layers - 1
    rows = torch.arange(len(hidden), device=hidden.device)
    states = _last_layers_states(tokens, hidden)
    complete = states if past is None else _joined(past, states)
    cos, sin = tokens.rotary[_kind(spec, index)]
    positions = tokens.positions[0, last][:, None]
    keys = complete[0].shape[2]
    mask = _mask(spec, spec.window(index), positions, keys, last + 1, tokens.dtype)
    return tokens.decoder.model.layers[index](
        hidden[rows, last][:, None],
        attention_mask=mask,
        position_ids=positions,
        position_embeddings=(cos[0, last][:, None], sin[0, last][:, None]),
        past_key_values=_Complete(complete),
    )


def _last_layers_states(tokens: _Tokens, hidden: Tensor) -> KeysValues:
    """Return the last layer's keys and values of (B, S, D) states, which no layer has computed."""
    layer, spec = tokens.decoder.model.layers[-1], tokens.decoder.spec
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    heads = (*normed.shape[:2], -1, spec.head_dim)
    keys = attention.k_proj(normed).view(heads)
    if spec.of_family.norms_heads:
        keys = attention.k_norm(keys)
    keys, values = keys.transpose(1, 2), attention.v_proj(normed).view(heads).transpose(1, 2)
    cos, sin = (table[:, None] for table in tokens.rotary[_kind(spec, spec.layers - 1)])
    return keys * cos + rotate_half(keys) * sin, values


def _joined(past: KeysValues, states: KeysValues) -> KeysValues:
    """Put a prefix's keys and values in front of each row's own."""
    rows = len(states[0])
    keys, values = (
        torch.cat([before.expand(rows, -1, -1, -1), after], dim=2)
        for before, after in zip(past, states, strict=True)
    )
    return keys, values


def _mask(
    spec: EmbeddingSpec,
    window: int | None,
    queries: Tensor,
    keys: int,
    lengths: Tensor,
    dtype: torch.dtype,
) -> Tensor | None:
    """Return (1 or B, 1, S, T): 0 for keys a query sees, else -inf; None for all up to itself.

    Args:
        spec: Says whether it sees those behind it.
        window: Keys less than so far away are seen; None for all.
        queries: (1 or B, S) positions of the queries.
        keys: T, how many positions there are.
        lengths: (B,) tokens of each row; those behind are padding.
        dtype: That of attention's scores.
    """
    if spec.causal and queries.shape[1] == keys and (window is None or keys <= window):
        return None
    positions = torch.arange(keys, device=queries.device)
    distance = queries[..., None] - positions
    # no mask for padding in a causal model: it is on the right, so no real token sees it
    visible = distance >= 0
    if not spec.causal:
        # a token of padding sees itself: where no key is seen, attention makes NaN
        visible = (positions < lengths[:, None, None]) | (distance == 0)
    if window is not None:
        visible = visible & (distance.abs() < window)
    # of numbers, for all layers: of truths, attention would make and keep some in every layer
    mask = torch.zeros(visible.shape, dtype=dtype, device=queries.device)
    return mask.masked_fill(~visible, -torch.inf)[:, None]
