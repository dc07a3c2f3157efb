"""The fused version on CUDA, the reference elsewhere; gradients in both."""

from collections.abc import Callable
from typing import Any

import torch

from anna_kernels import reference
from anna_kernels.pooling import Output, Pooled, RMSNorm, Tokens, wants_gradient


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

    Arguments, result and errors are `anna_kernels.reference.last_token_pool_normalise`'s, but that
    on CUDA a row without a last token is not refused: its vector is not finite. Gradients reach
    hidden and norm.weight through vectors of floats.
    """
    options: dict[str, Any] = {"width": width, "output": output, "ranges": ranges, "eps": eps}
    if not isinstance(hidden, torch.Tensor) or not hidden.is_cuda:
        return reference.last_token_pool_normalise(hidden, tokens, norm=norm, **options)
    from anna_kernels import fused

    weight = None if norm is None else norm.weight
    if not (output.is_float and wants_gradient(hidden, norm)):
        with torch.no_grad():
            return fused.last_token_pool_normalise(hidden, tokens, norm=norm, **options)

    def pool(version: Callable[..., Pooled]) -> Callable[..., Pooled]:
        def of(hidden: torch.Tensor, weight: torch.Tensor | None) -> Pooled:
            now = None if norm is None or weight is None else RMSNorm(weight, norm.eps)
            return version(hidden, tokens, norm=now, **options)

        return of

    of_fused = pool(fused.last_token_pool_normalise)
    of_reference = pool(reference.last_token_pool_normalise)
    return Pooled(*_WithGradient.apply(of_fused, of_reference, hidden, weight))


class _WithGradient(torch.autograd.Function):
    """Computes by one version and takes the gradient of another, which is computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        forward: Callable[..., Pooled],
        differentiated: Callable[..., Pooled],
        hidden: torch.Tensor,
        weight: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.differentiated = differentiated
        ctx.save_for_backward(hidden, weight)
        vectors, finite = forward(hidden.detach(), None if weight is None else weight.detach())
        ctx.mark_non_differentiable(finite)
        return vectors, finite

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs = [
            None if saved is None else saved.detach().requires_grad_(wanted)
            for saved, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        with torch.enable_grad():
            vectors = ctx.differentiated(*inputs).vectors
        wanted = [value for value in inputs if value is not None and value.requires_grad]
        found = iter(torch.autograd.grad(vectors, wanted, gradients[0]))
        return (
            None,
            None,
            *(
                next(found) if value is not None and value.requires_grad else None
                for value in inputs
            ),
        )
