"""The forward pass of families whose layers training does not take apart: the library's own model.

A shared prefix is computed once into the library's cache, which every text then has in front, and
gradients flow back through it.
"""

from collections.abc import Sequence

import torch
from anna_kernels import last_token_pool_normalise
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


def embed_by_library(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    prefix: Sequence[int] = (),
) -> Tensor:
    """Return (B, D) float32 unit vectors of texts that stand behind one prefix.

    Args:
        model: A causal decoder without its language head.
        texts: B rows of token ids without the prefix, each one id or more, EOS last.
        prefix: P token ids that stand in front of every text.
    """
    device = model.get_input_embeddings().weight.device
    lengths = torch.tensor([len(text) for text in texts], device=device)
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for text, row in zip(texts, ids, strict=True):
        row[: len(text)] = torch.tensor(text)
    cache = None
    if prefix:
        cache = DynamicCache(config=model.config)
        model(torch.tensor([list(prefix)], device=device), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(texts))
    # No mask for padding: it is on the right, so under causal attention no real token sees it.
    hidden = model(ids.to(device), past_key_values=cache, use_cache=cache is not None)[0]
    return last_token_pool_normalise(hidden, lengths - 1)
