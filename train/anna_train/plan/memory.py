"""The memory forecast: what a training step holds at its peak, and the mini-batch that fits.

The bytes of a layer are what autograd keeps of transformers' own layer with LoRA on every linear
module, counted token by token; the tests count them again on real models. Counted is what tensors
take: what an allocator holds beside that, of memory that was freed, is not.
"""

from dataclasses import dataclass
from typing import Final

import psutil
import torch

from anna_export.errors import SpaceError
from anna_export.spec import LINEAR_INPUTS, EmbeddingSpec, PoolingMode
from anna_train.recipe import TuneRecipe

# Bytes kept of one token in one layer, per unit of each width: of the model (D), of the MLP (F), of
# queries (q), of keys or values (kv), and of the adapter's rank (r).
_SAVED_BYTES: Final = {
    "fp32": {"dim": 16, "ffn": 16, "q": 8, "kv": 8, "rank": 28},
    "bf16": {"dim": 18, "ffn": 8, "q": 6, "kv": 4, "rank": 14},
}
# Norms keep what they norm in fp32, in either precision; two of a layer are counted above.
_NORM_BYTES: Final = 4
_ITEM: Final = {"fp32": 4, "bf16": 2}
# NF4 with double quantisation: 4 bits a weight, and its scales.
_NF4_BYTES: Final = 0.516
# A trained weight in fp32, its gradient, and AdamW's two moments; in bf16 its copy too.
_TRAINED_BYTES: Final = {"fp32": 16, "bf16": 18}
# Bytes of one token at work in a layer's backward pass, per unit of the MLP's width: gradients of
# its inner states, in either precision (in bf16, the adapter's input is cast to fp32 and back).
_AT_WORK: Final = 8
# What libraries take by themselves: CUDA's context and workspaces, or PyTorch and transformers.
_LIBRARIES_BYTES: Final = {"cuda": 1 << 30, "cpu": 512 << 20}
# Of what is free, so that fragments and other programs have room too.
_USED_SHARE: Final = 0.85
# More would save no more time, on any device.
_MOST_TOKENS: Final = {"cuda": 1 << 16, "cpu": 1 << 13}


@dataclass(frozen=True, slots=True)
class Forecast:
    """Bytes at the peak of a training step.

    Args:
        weights: The base's.
        adapter: The trained weights, their gradients and moments, and their copies in bf16.
        token: Of each token of a mini-batch, over all layers.
        front: Of the keys and values of a group's examples, in front of each of its queries.
        libraries: What PyTorch and the device's runtime take.
        mini_batch_tokens: Tokens of a mini-batch.
    """

    weights: int
    adapter: int
    token: int
    front: int
    libraries: int
    mini_batch_tokens: int

    @property
    def activations(self) -> int:
        """What a mini-batch holds."""
        return self.token * self.mini_batch_tokens + self.front

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapter + self.activations + self.libraries


def forecast(
    spec: EmbeddingSpec, recipe: TuneRecipe, device: torch.device, longest: int
) -> Forecast:
    """Return a step's memory, with the recipe's mini-batch, or the largest that fits.

    Args:
        spec: The base.
        recipe: What is trained, and how.
        device: Where.
        longest: Tokens of the longest text; behind examples, the least that a mini-batch can have.

    Raises:
        SpaceError: If not even that fits.
    """
    kind = "cuda" if device.type == "cuda" else "cpu"
    weights, libraries = _weights_bytes(spec, recipe), _LIBRARIES_BYTES[kind]
    adapter = _TRAINED_BYTES[recipe.run.precision] * _adapter_parameters(spec, recipe)
    token, front = token_bytes(spec, recipe), front_bytes(spec, recipe)
    least = _longest_prefix(recipe) + longest
    tokens = recipe.run.mini_batch_tokens
    if tokens is None:
        free, fixed = free_bytes(device), weights + adapter + front + libraries
        fits = int((free * _USED_SHARE - fixed) / token)
        if fits < least:
            needed = (fixed + token * least) / _USED_SHARE
            raise SpaceError(
                f"expected {needed / 1e9:.1f} GB free for a mini-batch of one text of {least} "
                f"tokens, found {free / 1e9:.1f} GB; lower limits, examples or batch.group, set "
                "run.recompute, or lora.quantise nf4"
            )
        tokens = min(fits, _MOST_TOKENS[kind])
    return Forecast(weights, adapter, token, front, libraries, max(tokens, least))


def free_bytes(device: torch.device) -> int:
    """Return a device's free memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def token_bytes(spec: EmbeddingSpec, recipe: TuneRecipe) -> int:
    """Return the bytes of one token at the peak: kept by all layers, and at work in one."""
    precision = recipe.run.precision
    saved, item = _SAVED_BYTES[precision], _ITEM[precision]
    layer = (
        saved["dim"] * spec.dim
        + saved["ffn"] * spec.ffn_dim
        + saved["q"] * spec.q_dim
        + saved["kv"] * spec.kv_dim
        + saved["rank"] * recipe.lora.rank
        + _NORM_BYTES * _normed_beside_two(spec)
    )
    if not spec.causal:
        # under a mask, keys and values are repeated for every query head
        layer += 2 * item * (spec.q_dim - spec.kv_dim)
    # of the last token alone, the last layer computes little
    layers = spec.layers - (spec.head.pooling is PoolingMode.LAST)
    if recipe.run.recompute:
        return layers * spec.dim * item + layer + _AT_WORK * spec.ffn_dim
    return layers * layer + _AT_WORK * spec.ffn_dim


def _normed_beside_two(spec: EmbeddingSpec) -> int:
    """Return how many numbers of a token a layer norms beside its two norms of states."""
    family = spec.of_family
    of_heads = spec.q_dim + spec.kv_dim if family.norms_heads else 0
    return of_heads + (len(family.norms.names()) - 2) * spec.dim


def front_bytes(spec: EmbeddingSpec, recipe: TuneRecipe) -> int:
    """Return what the keys and values in front of a group's queries take beside their tokens.

    Attention under a mask repeats keys and values for every query and every head, those of the
    query's own tokens too, and their gradients once more in the layer at work. The words between
    examples, and prompts without examples, are few and not counted. Where a model computes a
    prompt with every text, there is none in front.
    """
    prefix, item = _longest_prefix(recipe), _ITEM[recipe.run.precision]
    if not prefix or not spec.takes_prefix:
        return 0
    repeated = recipe.batch.group * (prefix + recipe.limits.query) * 2 * spec.q_dim * item
    if recipe.run.recompute:
        return 2 * repeated + (spec.layers - 1) * prefix * 2 * spec.kv_dim * item
    return spec.layers * repeated


def _longest_prefix(recipe: TuneRecipe) -> int:
    return recipe.examples.most * (recipe.limits.example_query + recipe.limits.example_response)


def _adapter_parameters(spec: EmbeddingSpec, recipe: TuneRecipe) -> int:
    shapes = spec.weight_shapes()
    targets = set(recipe.lora.targets)
    linear = (name for name in spec.linear_modules() if name.rpartition(".")[2] in targets)
    return sum(recipe.lora.rank * sum(shapes[f"{name}.weight"]) for name in linear)


def _weights_bytes(spec: EmbeddingSpec, recipe: TuneRecipe) -> int:
    item = _ITEM[recipe.run.precision]
    if recipe.lora.quantise == "none":
        return spec.parameters * item
    shapes = spec.weight_shapes()
    linear = sum(
        shapes[f"layers.0.{module}.weight"][0] * shapes[f"layers.0.{module}.weight"][1]
        for modules in LINEAR_INPUTS.values()
        for module in modules
    )
    return int(spec.layers * linear * _NF4_BYTES + (spec.parameters - spec.layers * linear) * item)
