"""The forward pass of training against transformers' own, over whole strings of ids."""

import pytest
import torch
from anna_train.model.forward import embed
from torch import Tensor
from transformers import MistralModel

from tests.train import batches


def stock(model: MistralModel, rows: list[list[int]]) -> Tensor:
    """Return unit vectors by transformers' own forward pass, one text at a time."""
    last_states = [model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    return torch.nn.functional.normalize(torch.stack(last_states), dim=-1)


def gradients(vectors: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    target = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(3)).to(vectors)
    values = torch.autograd.grad((vectors * target).sum(), list(weights.values()))
    return dict(zip(weights, values, strict=True))


# the sliding window is of 64 tokens: within it, at its edge, and beyond it
@pytest.mark.parametrize("prefix", [0, 1, 17, 60, 100])
@pytest.mark.parametrize("recompute", [False, True])
def test_vectors_and_gradients_are_those_of_whole_strings(prefix: int, recompute: bool) -> None:
    model = batches.model(dtype=torch.float64)
    front = batches.ids(prefix, 1)
    texts = [batches.ids(length, length) for length in (1, 13, 70, 7)]
    vectors = embed(model.inner, texts, front, recompute=recompute)
    wanted = stock(model.inner, [front + text for text in texts])
    # vectors are fp32; everything before them is in float64
    torch.testing.assert_close(vectors.double(), wanted, atol=3e-7, rtol=0)
    ours, theirs = gradients(vectors, model.weights()), gradients(wanted, model.weights())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() / gradient.norm() < 1e-6, name


def test_a_prefix_gets_its_gradient() -> None:
    model = batches.model()
    front = batches.ids(20, 1)
    texts = [batches.ids(5, 2)]
    with_prefix = gradients(embed(model.inner, texts, front), model.weights())
    without = gradients(embed(model.inner, texts), model.weights())
    assert all(not torch.allclose(with_prefix[name], without[name]) for name in without)
