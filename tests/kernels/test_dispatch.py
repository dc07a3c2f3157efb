"""What the package offers: the reference on a CPU, the kernel on CUDA, gradients in both."""

import pytest
import torch
from anna_kernels import RMSNorm, last_token_pool_normalise, reference
from anna_kernels.dispatch import _WithGradient

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LAST = torch.tensor([0, 6, 3])


def inputs(device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    hidden = torch.randn(3, 7, 129, generator=torch.Generator().manual_seed(0)).to(device)
    weight = torch.linspace(-1, 2, 129).to(device)
    return hidden.requires_grad_(), weight.requires_grad_()


def reference_gradients() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden, weight = inputs()
    vectors = reference.last_token_pool_normalise(hidden, LAST, norm=RMSNorm(weight, 1e-5))
    of_hidden, of_weight = torch.autograd.grad(vectors[:, :5].sum(), [hidden, weight])
    return vectors, of_hidden, of_weight


def test_cpu_computes_the_reference_with_gradients() -> None:
    hidden, weight = inputs()
    norm = RMSNorm(weight, 1e-5)
    vectors = last_token_pool_normalise(hidden, LAST, norm=norm)
    gradients = torch.autograd.grad(vectors[:, :5].sum(), [hidden, weight])
    for got, wanted in zip((vectors, *gradients), reference_gradients(), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("frozen", ["neither", "hidden", "weight"])
def test_gradient_of_the_reference_reaches_what_another_version_read(frozen: str) -> None:
    hidden, weight = inputs()
    hidden.requires_grad_(frozen != "hidden")
    weight.requires_grad_(frozen != "weight")

    def pool(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        norm = RMSNorm(weight, 1e-5)
        return reference.last_token_pool_normalise(hidden, LAST, norm=norm)

    def version(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return pool(hidden, weight)

    vectors = _WithGradient.apply(version, pool, hidden, weight)
    vectors[:, :5].sum().backward()
    expected, *gradients = reference_gradients()
    assert torch.equal(vectors, expected)
    for name, leaf, gradient in zip(("hidden", "weight"), (hidden, weight), gradients, strict=True):
        if name == frozen:
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, gradient, atol=0, rtol=0)


@pytest.mark.gpu
@needs_cuda
def test_cuda_computes_the_kernel_with_the_gradients_of_the_reference() -> None:
    hidden, weight = inputs("cuda")
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    last, norm = LAST.cuda(), RMSNorm(weight, 1e-5)
    vectors = last_token_pool_normalise(hidden, last, norm=norm)
    assert type(vectors.grad_fn).__name__ == "_WithGradientBackward"
    gradients = torch.autograd.grad(vectors[:, :5].sum(), [hidden, weight])
    for got, wanted in zip((vectors, *gradients), reference_gradients(), strict=True):
        torch.testing.assert_close(got.cpu(), wanted, atol=1e-6, rtol=1e-5)
