"""The fused version on CUDA, the reference elsewhere; gradients in both."""

from collections.abc import Callable
from typing import Any

import torch

from anna_kernels import reference
from anna_kernels.pooling import RMSNorm, wants_gradient


def last_token_pool_normalise(
    hidden: torch.Tensor,
    last: torch.Tensor,
    *,
    norm: RMSNorm | None = None,
    eps: float = 1e-12,
) -> torch.Tensor:
    """Take each row's last token, norm it and scale it to unit length, in float32.

    Arguments, result and errors are `anna_kernels.reference.last_token_pool_normalise`'s, but that
    on CUDA a row without a last token is not refused: its vector is NaN. Gradients reach hidden and
    norm.weight.
    """
    if not isinstance(hidden, torch.Tensor) or not hidden.is_cuda:
        return reference.last_token_pool_normalise(hidden, last, norm=norm, eps=eps)
    from anna_kernels import fused

    if not wants_gradient(hidden, norm):
        return fused.last_token_pool_normalise(hidden, last, norm=norm, eps=eps)

    def pool(version: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def apply(hidden: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
            used = None if norm is None or weight is None else RMSNorm(weight, norm.eps)
            return version(hidden, last, norm=used, eps=eps)

        return apply

    of_fused = pool(fused.last_token_pool_normalise)
    of_reference = pool(reference.last_token_pool_normalise)
    weight = None if norm is None else norm.weight
    vectors: torch.Tensor = _WithGradient.apply(of_fused, of_reference, hidden, weight)
    return vectors


class _WithGradient(torch.autograd.Function):
    """Computes by one version and takes the gradient of another, which is computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        forward: Callable[..., torch.Tensor],
        differentiated: Callable[..., torch.Tensor],
        hidden: torch.Tensor,
        weight: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.differentiated = differentiated
        ctx.save_for_backward(hidden, weight)
        return forward(hidden.detach(), None if weight is None else weight.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs = [
            None if saved is None else saved.detach().requires_grad_(wanted)
            for saved, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        with torch.enable_grad():
            vectors = ctx.differentiated(*inputs)
        wanted = [value for value in inputs if value is not None and value.requires_grad]
        of_wanted = iter(torch.autograd.grad(vectors, wanted, gradients[0]))
        return (
            None,
            None,
            *(
                next(of_wanted) if value is not None and value.requires_grad else None
                for value in inputs
            ),
        )
