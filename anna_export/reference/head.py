"""What stands behind a decoder, in PyTorch and fp32: pooling, Dense modules, unit length."""

from collections.abc import Callable, Mapping
from typing import Final

import torch

from anna_export.spec import Activation, Head, PoolingMode
from anna_export.text.batch import TokenBatch

_ACTIVATIONS: Final[Mapping[Activation, Callable[[torch.Tensor], torch.Tensor]]] = {
    Activation.IDENTITY: torch.nn.Identity(),
    Activation.TANH: torch.tanh,
    Activation.RELU: torch.relu,
    Activation.GELU: torch.nn.functional.gelu,
    Activation.SIGMOID: torch.sigmoid,
    Activation.SILU: torch.nn.functional.silu,
}


def head_weights(head: Head, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the Dense modules' weights by their names; they are small, and stay in memory."""
    return {name: read(name) for name in head.weight_shapes()}


def pooled_of_batch(head: Head, batch: TokenBatch) -> torch.Tensor:
    """Return which of a batch's tokens are pooled, (B, S) bool; the batch has no prefix apart."""
    counts = batch.prompt_tokens
    prompt_tokens = None if counts is None else torch.from_numpy(counts)
    positions, lengths = torch.arange(batch.width), torch.from_numpy(batch.lengths)
    return pooled_tokens(head, positions, lengths, prompt_tokens)


def pooled_tokens(
    head: Head,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    prompt_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return which tokens are pooled, (B, S) bool.

    Args:
        head: What pools them.
        positions: (S,) int64 0 … S - 1.
        lengths: (B,) int64 tokens of each row.
        prompt_tokens: (B,) int64 of them that are a prompt's, at the row's start; None for none.
    """
    lengths = lengths[:, None]
    first = torch.zeros_like(lengths)
    if head.leaves_out_prompt and prompt_tokens is not None:
        first = prompt_tokens[:, None]
    if head.pooling is PoolingMode.MEAN:
        return (first <= positions) & (positions < lengths)
    if head.pooling is PoolingMode.CLS:
        return positions == torch.where(first < lengths, first, 0)
    return positions == lengths - 1


def apply_head(
    head: Head,
    weights: Mapping[str, torch.Tensor],
    hidden: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    """Turn hidden states into vectors.

    Args:
        head: What stands behind them.
        weights: Its Dense modules', by their names.
        hidden: (B, S, D), normed.
        pooled: (B, S) bool tokens that are pooled.

    Returns:
        (B, embedding_dim) float32; of no pooled tokens, what the modules make of zeros.
    """
    column = pooled.to(hidden.device)[..., None]
    total = torch.where(column, hidden.float(), 0.0).sum(dim=1)
    row = total / column.sum(dim=1).clamp(min=1)
    for index, dense in enumerate(head.dense):
        name = f"head.dense.{index}"
        bias = weights[f"{name}.bias"] if dense.bias else None
        row = torch.nn.functional.linear(row, weights[f"{name}.weight"], bias)
        row = _ACTIVATIONS[dense.activation](row)
    return torch.nn.functional.normalize(row, dim=-1) if head.normalize else row
