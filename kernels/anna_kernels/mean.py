"""The mean of each row's tokens: its reference, what is refused, and its Triton version.

Rows are padded (B, S, D), on either side, or packed (N, D) one after another; a row's pooled tokens
are from start to stop, which `token_range` reads from a mask.
"""

import torch

from anna_kernels.pooling import DTYPES, INDEX_DTYPES, check_dtype, check_eps

_REFERENCE_DTYPES = (*DTYPES, torch.float64)


def token_range(
    mask: torch.Tensor, prompt_tokens: int | torch.Tensor = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each row's pooled tokens start and stop, two (B,) int64; waits for the device.

    Args:
        mask: (B, S) bool, int32 or int64, one where a token is real, padded on either side.
        prompt_tokens: How many of a row's first real tokens are left out; one number or (B,).

    Raises:
        TypeError: The mask is no tensor or of another type.
        ValueError: A mask's tokens are not one run of ones, or none is left behind the prompt.
    """
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"expected mask as a torch tensor, found {type(mask).__name__}")
    check_dtype("mask", mask.dtype, (torch.bool, *INDEX_DTYPES))
    if mask.ndim != 2 or 0 in mask.shape[1:]:
        raise ValueError(f"expected mask (B, S) with S at least 1, found {tuple(mask.shape)}")
    real, positions = mask.bool(), torch.arange(mask.shape[1], device=mask.device)
    first = torch.where(real, positions, mask.shape[1]).amin(1)
    stop = torch.where(real, positions + 1, 0).amax(1)
    broken = (mask.long() != real.long()).any(1) | ((stop - first).clamp_min(0) != real.sum(1))
    if broken.any():
        row = int(broken.nonzero()[0])
        raise ValueError(
            f"expected each row of mask to be one run of ones among zeros, found another in row "
            f"{row}; pad on one side"
        )
    start = first + prompt_tokens
    _check_values(start, stop, mask.shape[1], mask.shape[1])
    return start, stop


def mean_pool(
    hidden: torch.Tensor, start: torch.Tensor, stop: torch.Tensor, *, longest: int | None = None
) -> torch.Tensor:
    """Take the mean of each row's tokens, in float32: Triton on CUDA, PyTorch elsewhere.

    Args:
        hidden: (B, S, D) padded or (N, D) packed states; bf16, fp16, fp32, or fp64 on a CPU.
        start: (B,) index of each row's first pooled token, int32 or int64: within its row where
            rows are padded, within all N where they are packed.
        stop: (B,) index behind its last one, of the same type.
        longest: Most tokens that a row pools; needed where rows are packed. S where padded.

    Returns:
        (B, D) float32. On CUDA a row out of range is not refused: its vector is NaN.

    Raises:
        TypeError: An input is no tensor or has another dtype.
        ValueError: Shapes, devices or longest do not agree, a row pools no token or one outside, or
            a gradient is wanted on CUDA.

    Source: the "mean" mode of sentence-transformers' Pooling.
    """
    limit = check_mean(hidden, start, stop, longest)
    if hidden.is_cuda:
        return fused_mean_pool(hidden, start, stop, longest=limit)
    tokens = hidden.shape[-2]
    _check_values(start, stop, tokens, limit)
    rows = hidden if hidden.ndim == 3 else hidden.expand(len(start), *hidden.shape)
    means = [
        row[first:behind].float().mean(0)
        for row, first, behind in zip(rows, start.tolist(), stop.tolist(), strict=True)
    ]
    return torch.stack(means) if means else hidden.new_zeros(0, hidden.shape[-1]).float()


def mean_pool_normalise(
    hidden: torch.Tensor,
    start: torch.Tensor,
    stop: torch.Tensor,
    *,
    longest: int | None = None,
    eps: float = 1e-12,
) -> torch.Tensor:
    """Take the mean of each row's tokens and scale it to unit length, in float32.

    Arguments, result and errors are `mean_pool`'s; eps is the smallest length divided by.
    """
    check_eps("eps", eps)
    means = mean_pool(hidden, start, stop, longest=longest)
    if means.is_cuda:
        return _scaled(means, eps)
    return means / torch.linalg.vector_norm(means, dim=-1, keepdim=True).clamp_min(eps)


def check_mean(
    hidden: torch.Tensor, start: torch.Tensor, stop: torch.Tensor, longest: int | None
) -> int:
    """Refuse what no version takes, without reading values; return the most tokens of a row."""
    for name, value in {"hidden": hidden, "start": start, "stop": stop}.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"expected {name} as a torch tensor, found {type(value).__name__}")
        if value.device != hidden.device:
            raise ValueError(
                f"expected all tensors on one device, found hidden on {hidden.device} and {name} "
                f"on {value.device}; move it with .to(hidden.device)"
            )
    check_dtype("hidden", hidden.dtype, DTYPES if hidden.is_cuda else _REFERENCE_DTYPES)
    check_dtype("start", start.dtype, INDEX_DTYPES)
    check_dtype("stop", stop.dtype, (start.dtype,))
    shapes = f"found {tuple(hidden.shape)}, {tuple(start.shape)} and {tuple(stop.shape)}"
    if hidden.ndim not in (2, 3) or 0 in hidden.shape[-2:]:
        raise ValueError(f"expected hidden (B, S, D) or (N, D), S, N and D at least 1, {shapes}")
    rows = hidden.shape[:1] if hidden.ndim == 3 else start.shape
    if start.ndim != 1 or start.shape != rows or stop.shape != rows:
        raise ValueError(f"expected start and stop (B,) beside hidden, {shapes}")
    if longest is None:
        if hidden.ndim == 2:
            raise ValueError("expected longest beside packed rows, found None; give the most")
        longest = hidden.shape[1]
    if not 1 <= longest <= hidden.shape[-2]:
        raise ValueError(f"expected longest in 1..{hidden.shape[-2]}, found {longest}")
    return longest


def _check_values(start: torch.Tensor, stop: torch.Tensor, tokens: int, longest: int) -> None:
    bad = (start < 0) | (start >= stop) | (stop > tokens) | (stop - start > longest)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"expected each row to pool 1 to {longest} of tokens 0..{tokens - 1}, found "
            f"{int(start[row])} to before {int(stop[row])} in row {row}"
        )


def fused_mean_pool(
    hidden: torch.Tensor, start: torch.Tensor, stop: torch.Tensor, *, longest: int
) -> torch.Tensor:
    """Compute `mean_pool` in two Triton launches, on a GPU; arguments are checked by then."""
    import triton

    from anna_kernels.mean_kernel import SLICE, MeanVariant, slice_mean_kernel, slice_sums_kernel

    if torch.is_grad_enabled() and hidden.requires_grad:
        raise ValueError("expected hidden without gradient, found requires_grad; use no_grad()")
    tokens, dim = hidden.shape[-2:]
    batch, slices = len(start), triton.cdiv(longest, SLICE)
    variant = MeanVariant(dim, hidden.dtype, start.dtype)
    sums = torch.empty(batch, slices, dim, dtype=torch.float32, device=hidden.device)
    means = torch.empty(batch, dim, dtype=torch.float32, device=hidden.device)
    if not batch:
        return means
    start, stop = start.contiguous(), stop.contiguous()
    first, second = variant.blocks
    of_sums, of_means = variant.constants()
    warps = variant.num_warps
    stride = tokens if hidden.ndim == 3 else 0
    with torch.cuda.device_of(hidden):
        slice_sums_kernel[(batch, slices, triton.cdiv(dim, first))](
            hidden.contiguous(),
            start,
            stop,
            stride,
            tokens,
            slices,
            sums,
            **of_sums,
            num_warps=warps[0],
        )
        slice_mean_kernel[(batch, triton.cdiv(dim, second))](
            sums, start, stop, tokens, slices, means, **of_means, num_warps=warps[1]
        )
    return means


def _scaled(means: torch.Tensor, eps: float) -> torch.Tensor:
    """Scale (B, D) float32 means by the last-token kernel: each is its row's only token."""
    from anna_kernels import fused

    only = torch.zeros(len(means), dtype=torch.int64, device=means.device)
    return fused.last_token_pool_normalise(means[:, None], only, eps=eps)
