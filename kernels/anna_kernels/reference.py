"""What each kernel computes, in plain PyTorch: the contract that the fused versions keep."""

import torch
import torch.nn.functional as F

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pool_normalise(hidden: torch.Tensor, last: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    """Take each sequence's last token and scale it to unit length.

    Args:
        hidden: (B, S, D) final hidden states; bf16, fp16 or fp32.
        last: (B,) int64 index of the last real token, 0 <= last < S.
        eps: Smallest norm divided by, so a zero vector stays zero.

    Returns:
        (B, D) float32, rows of unit L2 length.

    Raises:
        TypeError: An input is no tensor or has another dtype.
        ValueError: Shapes or devices do not agree, eps is no norm, or an index is outside 0..S-1.

    Source: the "lasttoken" mode of sentence-transformers' Pooling, right-padded case, then its
    Normalize; the same sum as the ONNX function anna::LastTokenPoolNormalize.
    """
    check_inputs(hidden, last, eps)
    check_range(last, hidden.shape[1])
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return F.normalize(hidden[rows, last].float(), dim=-1, eps=eps)


def check_inputs(hidden: torch.Tensor, last: torch.Tensor, eps: float) -> None:
    """Refuse what no version takes; reads no tensor's values, so it never waits for a device."""
    for name, value in (("hidden", hidden), ("last", last)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"expected {name} as a torch tensor, found {type(value).__name__}")
    check_dtype(hidden.dtype)
    if last.dtype != torch.int64:
        raise TypeError(f"expected last in int64, found {last.dtype}; convert it with last.long()")
    if hidden.ndim != 3 or 0 in hidden.shape[1:] or last.shape != hidden.shape[:1]:
        raise ValueError(
            "expected hidden (B, S, D) with S and D at least 1 and last (B,), "
            f"found {tuple(hidden.shape)} and {tuple(last.shape)}"
        )
    if hidden.device != last.device:
        raise ValueError(
            f"expected both tensors on one device, found hidden on {hidden.device} and last on "
            f"{last.device}; move last with last.to(hidden.device)"
        )
    check_eps(eps)


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse hidden states that are not bf16, fp16 or fp32."""
    if dtype not in DTYPES:
        raise TypeError(f"expected hidden in bfloat16, float16 or float32, found {dtype}")


def check_eps(eps: float) -> None:
    """Refuse an eps that float32, in which norms are compared, would make zero or infinite."""
    limits = torch.finfo(torch.float32)
    if not limits.tiny <= eps <= limits.max:
        raise ValueError(
            f"expected eps between {limits.tiny:.1e} and {limits.max:.1e}, found {eps}"
        )


def check_range(last: torch.Tensor, seq: int) -> None:
    """Refuse an index outside the sequence; PyTorch would count a negative one from the end.

    Reads the values of last, so on a GPU it waits for the device.
    """
    outside = last[(last < 0) | (last >= seq)]
    if outside.numel():
        raise ValueError(f"expected last in 0..{seq - 1}, found {outside[0].item()}")
