"""Baking: a prompt's keys and values, computed once and kept in the artifact.

They are computed in fp32, layer by layer, by the model that the artifact was made from: then a
quantised artifact is closer to it behind a prompt than if it computed the prompt itself
(benchmarks/decided/prefix_precision.py). Without that model, the artifact's stored weights compute
them, which costs what the weights' rounding costs.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from anna_export import quantise
from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import StoredPrefix
from anna_export.artifact.prefixes import write_prefix
from anna_export.errors import DamagedError
from anna_export.progress import Progress, in_steps
from anna_export.quantise.scheme import Scheme
from anna_export.spec import EmbeddingSpec
from anna_export.text.batching import BatchLimits, batches_by_length
from anna_export.text.prompts import Prompt
from anna_export.text.tokeniser import Tokeniser
from anna_export.weights.checkpoint import TORCH_DTYPES, Checkpoint

if TYPE_CHECKING:
    from anna_export.reference.backend import PytorchBackend

# Tokens that pass through the layers at once.
_BATCH_TOKENS: Final = 4096


def bake(
    artifact: Artifact,
    names: Collection[str],
    tokeniser: Tokeniser,
    checkpoint: Checkpoint | None,
    progress: Progress | None = None,
) -> dict[str, StoredPrefix]:
    """Compute the prefixes of prompts and write them into the artifact's folder.

    Args:
        artifact: Its manifest knows the prompts, and is not changed.
        names: Which prompts.
        tokeniser: The artifact's.
        checkpoint: What the artifact was made from; None for the artifact's own weights.
        progress: Told how many tokens are done.

    Returns:
        What the manifest must list, by the prompt's name; nothing for a prompt that has nothing in
        front of a text.

    Raises:
        DamagedError: If a key or value is not finite in the artifact's type.
    """
    manifest = artifact.manifest
    named: dict[Prompt, list[str]] = {}
    for name in names:
        named.setdefault(manifest.prompts.by_name[name], []).append(name)
    rows = {prompt: ids for prompt in named if (ids := _ids(manifest.spec, tokeniser, prompt))}
    if not rows:
        return {}
    # transformers takes seconds to load: only who bakes waits for it
    from anna_export.reference.stored import stored_model
    from anna_export.reference.streamed import open_streamed, open_streamed_checkpoint

    batches = batches_by_length([len(ids) for ids in rows.values()], BatchLimits(_BATCH_TOKENS))
    on_read = in_steps(
        progress,
        sum(map(len, rows.values())),
        len(batches) * len(manifest.spec.decoder_shapes()),
    )
    if checkpoint is None:
        read = stored_model(artifact).read
        backend = open_streamed(manifest.spec, read, "the artifact's stored weights", on_read)
    else:
        backend = open_streamed_checkpoint(checkpoint, on_read)
    dtype = TORCH_DTYPES[quantise.scheme_of(manifest).compute_dtype]
    baked: dict[str, StoredPrefix] = {}
    in_order = list(rows)
    for members in batches:
        prompts = [in_order[index] for index in members]
        computed = keys_and_values(backend, [rows[prompt] for prompt in prompts])
        for prompt, (keys, values) in zip(prompts, computed, strict=True):
            keys, values = _narrowed(keys, dtype), _narrowed(values, dtype)
            for name in named[prompt]:
                baked[name] = write_prefix(
                    artifact, name, rows[prompt], keys, values, exact=checkpoint is not None
                )
    return baked


def prefix_bytes(
    spec: EmbeddingSpec, scheme: Scheme, tokeniser: Tokeniser, prompts: Iterable[Prompt]
) -> int:
    """Return the size of the files that prompts are baked into."""
    tokens = sum(len(_ids(spec, tokeniser, prompt)) for prompt in prompts)
    numbers = 2 * spec.layers * spec.kv_dim * tokens
    return numbers * TORCH_DTYPES[scheme.compute_dtype].itemsize


def _ids(spec: EmbeddingSpec, tokeniser: Tokeniser, prompt: Prompt) -> list[int]:
    """Return the ids that are baked; `<s>` alone is not worth it, and not all models take any."""
    return tokeniser.prefix_ids(prompt) if prompt.front and spec.takes_prefix else []


def keys_and_values(
    backend: "PytorchBackend", rows: Sequence[Sequence[int]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the keys, turned by their positions, and the values of each row: (L, K, P, head_dim).

    Args:
        backend: What computes them, all rows in one batch.
        rows: Token ids.
    """
    from transformers import DynamicCache

    width = max(map(len, rows))
    # what pads them stands on the right, where no token of theirs sees it
    ids = np.array([[*row, *[0] * (width - len(row))] for row in rows], dtype=np.int64)
    cache = DynamicCache()  # without the model's config, so that no window cuts it
    with torch.inference_mode():
        backend.model(input_ids=torch.from_numpy(ids), past_key_values=cache, use_cache=True)
    for index, row in enumerate(rows):
        keys, values = (
            torch.stack([getattr(layer, name)[index, :, : len(row)] for layer in cache.layers])
            for name in ("keys", "values")
        )
        yield keys, values


def _narrowed(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    narrowed = tensor.to(dtype)
    if not narrowed.isfinite().all():
        raise DamagedError(
            "expected finite keys and values of every prompt, found NaN or infinity in "
            f"{str(dtype).removeprefix('torch.')}; export in a wider precision"
        )
    return narrowed
