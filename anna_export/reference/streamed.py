"""PyTorch, one matrix in memory at a time: for models whose fp32 weights do not fit.

The modules and their forward pass are transformers' own; every weight is read when its module is
called and dropped after it, so one batch costs one pass over the weights on disk.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from anna_export.artifact.folder import Artifact
from anna_export.console.quiet import quiet_libraries
from anna_export.reference.backend import PytorchBackend
from anna_export.reference.head import head_weights
from anna_export.reference.model import empty_model
from anna_export.reference.stored import ReadWeight, stored_model
from anna_export.spec import EMBEDDING_WEIGHT, EmbeddingSpec
from anna_export.weights.adapter import Delta
from anna_export.weights.checkpoint import Checkpoint


def stream_checkpoint(
    model: torch.nn.Module, checkpoint: Checkpoint, on_read: Callable[[], None] | None = None
) -> None:
    """Make a decoder on the meta device read base and adapters: y = W x + sum of s B (A x).

    Args:
        model: transformers' decoder of the checkpoint's config.
        checkpoint: Base and adapters.
        on_read: Called after every weight is read, once a batch.
    """
    # the embedding is looked up, not multiplied: its delta is part of the rows that are read
    names = set(checkpoint.spec.weight_shapes()) - {EMBEDDING_WEIGHT}
    apart = {name: deltas for name in names if (deltas := checkpoint.deltas(name))}

    def read(name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        return checkpoint.read(name, torch.float32, merge=name not in apart, rows=rows)

    _stream_all(model, read, apart, on_read)


def open_streamed_checkpoint(
    checkpoint: Checkpoint, on_read: Callable[[], None] | None = None
) -> PytorchBackend:
    """Open the model that our own reading of base and adapter describes, one matrix at a time."""

    def read(name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        return checkpoint.read(name, torch.float32, rows=rows)

    backend = _empty_backend(checkpoint.spec, "base and adapter", read)
    stream_checkpoint(backend.model, checkpoint, on_read)
    return backend


def open_streamed_artifact(
    artifact: Artifact, on_read: Callable[[], None] | None = None
) -> PytorchBackend:
    """Open an artifact's stored weights, one at a time: what a graph over them computes."""
    spec, stored = artifact.manifest.spec, stored_model(artifact)
    backend = open_streamed(spec, stored.read, "the artifact's stored weights", on_read)
    stored.listen(backend.model)
    return backend


def open_streamed(
    spec: EmbeddingSpec,
    read: ReadWeight,
    source: str,
    on_read: Callable[[], None] | None = None,
) -> PytorchBackend:
    """Open weights from anywhere, one at a time.

    Args:
        spec: The model's numbers.
        read: Gives a weight by its name, fp32.
        source: Where they come from, for verdicts.
        on_read: Called after every weight is read, once a batch.
    """
    backend = _empty_backend(spec, source, read)
    _stream_all(backend.model, read, {}, on_read)
    return backend


def _empty_backend(spec: EmbeddingSpec, source: str, read: ReadWeight) -> PytorchBackend:
    """Return an empty decoder, and what stands behind it with its weights, which are small."""
    with quiet_libraries():
        model = empty_model(spec)
    label = f"fp32 in PyTorch on CPU, layer by layer, from {source}"
    return PytorchBackend(model, spec, label, head_weights=head_weights(spec.head, read))


def _stream_all(
    model: torch.nn.Module,
    read: ReadWeight,
    deltas: Mapping[str, Sequence[Delta]],
    on_read: Callable[[], None] | None,
) -> None:
    def counted(name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        weight = read(name, rows)
        if on_read is not None:
            on_read()
        return weight

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding):
            _look_up(module, f"{name}.weight", counted)
        elif module._parameters:
            _stream(module, name, counted, deltas.get(f"{name}.weight", ()))


def _look_up(module: torch.nn.Embedding, name: str, read: ReadWeight) -> None:
    """Make an embedding read the rows it looks up: a table of all may be gigabytes."""
    absent = module.weight

    def load(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        ids, index = torch.unique(inputs[0], return_inverse=True)
        module.weight = torch.nn.Parameter(read(name, ids), requires_grad=False)
        return (index, *inputs[1:])

    def drop(module: torch.nn.Module, *_: Any) -> None:
        module.weight = absent

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)


def _stream(module: torch.nn.Module, name: str, read: ReadWeight, deltas: Sequence[Delta]) -> None:
    absent = {key: value for key, value in module._parameters.items() if value is not None}

    def load(module: torch.nn.Module, _: Any) -> None:
        for key in absent:
            value = torch.nn.Parameter(read(f"{name}.{key}"), requires_grad=False)
            setattr(module, key, value)

    def drop(
        module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> Any:
        for key, value in absent.items():
            setattr(module, key, value)
        for delta in deltas:
            b, a = delta.factors()
            # in place: of 8,192 tokens, one such array has 0.4 GiB in a 7 B model
            rows = output.flatten(end_dim=-2)
            rows.addmm_((inputs[0] @ a.T).flatten(end_dim=-2), b.T, alpha=delta.scale)
        return output

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)
