"""The forward pass of training against transformers' own, over whole strings of ids."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from anna_train.model.forward import Decoder, embed
from anna_train.model.trained_model import TrainedModel, lora_config
from anna_train.recipe import LoraRecipe
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from anna_export.spec import FAMILIES, LAST_TOKEN, Head, PoolingMode
from tests.support.families import BOTH_WAYS, config_of
from tests.train import batches


def stock(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    """Return unit vectors by transformers' own forward pass, one text at a time."""
    last_states = [model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    return torch.nn.functional.normalize(torch.stack(last_states), dim=-1)


def pooled(model: PreTrainedModel, rows: list[list[int]], head: Head, prompt: int) -> Tensor:
    """Return unit vectors of other poolings by transformers' own forward pass, one at a time."""
    first = 0 if head.include_prompt else prompt
    states = [model(input_ids=torch.tensor([row])).last_hidden_state[0, first:] for row in rows]
    vectors = [state[0] if head.pooling is PoolingMode.CLS else state.mean(0) for state in states]
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1)


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
    wanted = stock(model.inner.model, [front + text for text in texts])
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


MASKS = {"causal": dict[str, dict[str, Any]](), "both ways": BOTH_WAYS}


def decoder(family: str, mask: str, head: Head = LAST_TOKEN) -> TrainedModel:
    """Return a family's small model in float64, with an adapter that is not zero."""
    torch.manual_seed(0)
    config = config_of(family, **MASKS[mask].get(family, {}))
    base = AutoModel.from_config(config, attn_implementation="sdpa")
    for name, weight in base.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(weight, mean=0.5, std=0.2)
    adapted = get_peft_model(base, lora_config(LoraRecipe(rank=4, alpha=8)))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    inner = Decoder.of(adapted.double().train().base_model.model)
    return TrainedModel(adapted, replace(inner, spec=replace(inner.spec, head=head)))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_last_tokens_of_every_family_are_those_of_whole_strings(
    family: str, mask: str, recompute: bool
) -> None:
    model = decoder(family, mask)
    assert model.inner.spec.causal == (mask == "causal")
    front = batches.ids(23, 1) if mask == "causal" else []
    texts = [batches.ids(length, length) for length in (1, 13, 40, 7)]
    vectors = embed(model.inner, texts, front, recompute=recompute)
    wanted = stock(model.inner.model, [front + text for text in texts])
    torch.testing.assert_close(vectors.double(), wanted, atol=3e-7, rtol=0)
    ours, theirs = gradients(vectors, model.weights()), gradients(wanted, model.weights())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


HEADS = {
    "mean": Head(PoolingMode.MEAN),
    "mean without prompt": Head(PoolingMode.MEAN, include_prompt=False),
    "first": Head(PoolingMode.CLS),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_poolings_of_every_family_are_those_of_whole_strings(
    family: str, mask: str, head: str
) -> None:
    model = decoder(family, mask, HEADS[head])
    front = batches.ids(23, 1)
    texts = [batches.ids(length, length) for length in (1, 13, 40, 7)]
    rows = [front + text for text in texts]
    shares = model.inner.spec.takes_prefix
    assert shares == (head == "mean without prompt" and mask == "causal")
    if shares:
        vectors = embed(model.inner, texts, front, prompt_tokens=len(front))
    else:
        vectors = embed(model.inner, rows, prompt_tokens=len(front))
    wanted = pooled(model.inner.model, rows, HEADS[head], len(front))
    torch.testing.assert_close(vectors.double(), wanted, atol=3e-7, rtol=0)
    ours, theirs = gradients(vectors, model.weights()), gradients(wanted, model.weights())
    for name, gradient in theirs.items():
        # the first token of a causal model sees itself alone: its queries and keys have none
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name
