"""What each kernel computes, in plain PyTorch: the contract that the fused versions keep."""

from typing import Final

import torch

from anna_kernels.pooling import (
    DTYPES,
    Last,
    Lengths,
    Mask,
    Offsets,
    Output,
    Pooled,
    RMSNorm,
    Tokens,
    check_inputs,
)

# of the reference alone, for models whose gradients are tested in it
_DTYPES: Final = (*DTYPES, torch.float64)


def last_token_pool_normalise(
    hidden: torch.Tensor,
    tokens: Tokens,
    *,
    norm: RMSNorm | None = None,
    width: int | None = None,
    output: Output = Output.FLOAT32,
    ranges: torch.Tensor | None = None,
    eps: float = 1e-12,
) -> Pooled:
    """Take each row's last token, norm it, cut it to a width and scale it to unit length.

    Everything is computed in float32 and rounded once, to the output.

    Args:
        hidden: (B, S, D) hidden states, or (T, D) with `Offsets`; bf16, fp16, fp32 or fp64.
        tokens: Where each row's last token is: Last, Lengths, Mask or Offsets.
        norm: The model's final norm, where hidden states are those in front of it.
        width: Dimensions to keep, before the length is made 1 (Matryoshka); None for all D.
        output: What a vector is written as.
        ranges: (2, width) float32 smallest and largest value of each dimension, for int8 and uint8.
        eps: Smallest length divided by, so a zero vector stays zero.

    Returns:
        Vectors (B, width), of unit L2 length where they are floats, and which are finite.

    Raises:
        TypeError: An input is no tensor or has another dtype.
        ValueError: Shapes or devices do not agree, eps is no norm, or a row has no last token.

    Source: the "lasttoken" mode of sentence-transformers' Pooling, then its Normalize and
    `quantize_embeddings`; transformers' MistralRMSNorm, but for its rounding in between.
    """
    check_inputs(hidden, tokens, norm, width, output, ranges, eps, _DTYPES)
    rows = last_rows(hidden, tokens)
    states = hidden.reshape(-1, hidden.shape[-1])[rows].float()
    if norm is None:
        states = states[:, :width]
    finite = states.square().sum(-1).isfinite()
    if norm is not None:
        states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + norm.eps)
        states = norm.weight.float() * states
    states = states[:, :width]
    length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    finite = finite & length[:, 0].isfinite()
    vectors = states / length.clamp_min(eps)
    return Pooled(_written(vectors, finite, output, ranges), finite)


def last_rows(hidden: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Return (B,) int64: each row's last token, counted over the tokens of all rows.

    Reads the values of tokens, so on a GPU it waits for the device.

    Raises:
        ValueError: If one is outside, or a row has none.
    """
    values = tokens.values.long()
    match tokens:
        case Offsets():
            _require(tokens, values[:-1], (values[:-1] >= 0) & (values[:-1] < values[1:]), "rising")
            _require(tokens, values, values <= len(hidden), f"at most {len(hidden)}")
            return values[1:] - 1
        case Mask():
            places = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
            last = ((values != 0) * places).amax(1) - 1
            _require(tokens, last + 1, last >= 0, "a real token in every row, not one of")
        case Lengths():
            last = values - 1
            inside = (last >= 0) & (last < hidden.shape[1])
            _require(tokens, values, inside, f"in 1..{hidden.shape[1]}")
        case Last():
            last = values
            inside = (last >= 0) & (last < hidden.shape[1])
            _require(tokens, values, inside, f"in 0..{hidden.shape[1] - 1}")
    return torch.arange(len(hidden), device=hidden.device) * hidden.shape[1] + last


def _require(tokens: Tokens, values: torch.Tensor, holds: torch.Tensor, what: str) -> None:
    outside = values[~holds]
    if outside.numel():
        raise ValueError(f"expected {tokens.form} {what}, found {outside[0].item()}")


def _written(
    vectors: torch.Tensor, finite: torch.Tensor, output: Output, ranges: torch.Tensor | None
) -> torch.Tensor:
    if output.is_float:
        return vectors.to(output.dtype)
    if output.is_packed:
        bits = torch.nn.functional.pad(vectors > 0, (0, -vectors.shape[1] % 8))
        weights = 2 ** torch.arange(7, -1, -1, device=vectors.device)
        codes = (bits.view(len(bits), -1, 8) * weights).sum(-1) - output.offset
    else:
        assert ranges is not None
        smallest, largest = ranges
        steps = (largest - smallest) / 255
        steps = torch.where(steps == 0, 1, steps)
        codes = ((vectors - smallest) / steps).floor().clamp(0, 255) - output.offset
    return torch.where(finite[:, None], codes, 0).to(output.dtype)
