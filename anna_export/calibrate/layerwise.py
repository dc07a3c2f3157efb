"""The layer-wise forward pass: one decoder layer of a checkpoint in memory at a time.

Modules and their forward pass are transformers' own; only where weights come from is ours.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from anna_export.console.quiet import quiet_libraries
from anna_export.progress import Progress
from anna_export.quantise.embedding import EmbeddingFormat
from anna_export.reference.head import apply_head, head_weights, pooled_of_batch
from anna_export.reference.model import empty_model
from anna_export.spec import EMBEDDING_WEIGHT, Head
from anna_export.text.batch import TokenBatch
from anna_export.weights.checkpoint import Checkpoint

# a linear module's name in its layer ("mlp.up_proj") and its input (B, S, in) → what replaces it
OnInput = Callable[[str, torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class LayerOutputs:
    """A batch and its hidden states after some of the layers."""

    batch: TokenBatch
    hidden: torch.Tensor  # (B, S, D) fp32

    def real(self) -> torch.Tensor:
        """(B, S) bool: which tokens are no padding."""
        return torch.from_numpy(self.batch.mask).bool().to(self.hidden.device)

    def pooled(self, head: Head) -> torch.Tensor:
        """(B, S) bool: which tokens are pooled."""
        return pooled_of_batch(head, self.batch).to(self.hidden.device)


class LayerwiseForward:
    """The layers of base and adapter, merged, in fp32, to be run one after another."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.spec = checkpoint.spec
        self._checkpoint = checkpoint
        self.device = device
        with quiet_libraries():
            self._model = empty_model(checkpoint.spec)
        self._norm, self._model.norm = self._model.norm, torch.nn.Identity()
        self._layers = list(self._model.layers)
        self._model.layers = torch.nn.ModuleList(_PassedBy() for _ in self._layers)
        # what transformers computes beside the layers: frequencies of rotary embedding
        self._model.rotary_emb.to(device)

    def start(
        self, *batches: TokenBatch, embedding: EmbeddingFormat | None = None
    ) -> list[LayerOutputs]:
        """Look up the token embeddings, (B, S, D), as they are or as a format stores them."""
        # only the rows of these tokens: a table of all may be gigabytes
        ids = torch.from_numpy(np.unique(np.concatenate([batch.ids.ravel() for batch in batches])))
        table = self._checkpoint.read(EMBEDDING_WEIGHT, torch.float32, rows=ids)
        if embedding is not None:
            table = embedding.dequantize(embedding.quantize(table))
        table *= self.spec.embedding_scale

        def look_up(batch: TokenBatch) -> torch.Tensor:
            return table[torch.searchsorted(ids, torch.from_numpy(batch.ids))].to(self.device)

        return [LayerOutputs(batch, look_up(batch)) for batch in batches]

    def layers(
        self, first: int = 0, progress: Progress | None = None
    ) -> Iterator[tuple[int, torch.nn.Module]]:
        """Yield each layer with its weights, which are gone, and reported, at the next one."""
        for index in range(first, self.spec.layers):
            layer = self._layers[index]
            named = {name: f"layers.{index}.{name}" for name, _ in layer.named_parameters()}
            for name, full in named.items():
                module, _, parameter = name.rpartition(".")
                value = _parameter(self._read(full, self.device))
                setattr(layer.get_submodule(module), parameter, value)
            self._model.layers[index] = layer
            yield index, layer
            self._model.layers[index] = _PassedBy()
            layer.to("meta")
            if progress is not None:
                progress(index + 1, self.spec.layers)

    def advance(
        self, layer: Any, stream: Sequence[LayerOutputs], on_input: OnInput | None = None
    ) -> list[LayerOutputs]:
        """Pass every batch of a stream through a layer."""
        return [self.step(layer, outputs, on_input) for outputs in stream]

    @torch.inference_mode()
    def step(
        self, layer: Any, outputs: LayerOutputs, on_input: OnInput | None = None
    ) -> LayerOutputs:
        """Pass a batch through a layer; `on_input` reads, and may replace, each linear's input."""
        # padding stands on the right: of causal attention, no token sees it
        mask = None if self.spec.causal else outputs.real().long()
        with _hooked(layer, on_input):
            hidden = self._model(
                inputs_embeds=outputs.hidden, attention_mask=mask, use_cache=False
            ).last_hidden_state
        return LayerOutputs(outputs.batch, hidden)

    @torch.inference_mode()
    def finish(self, stream: Sequence[LayerOutputs]) -> torch.Tensor:
        """Return (N, D) vectors of all batches, scaled to unit length: final norm and head."""
        norm, head = self._norm, self.spec.head
        norm.weight = _parameter(self._read("norm.weight", self.device))
        weights = head_weights(head, lambda name: self._read(name, self.device))
        vectors = [
            apply_head(head, weights, norm(outputs.hidden), outputs.pooled(head))
            for outputs in stream
        ]
        return torch.nn.functional.normalize(torch.cat(vectors), dim=-1).cpu()

    def _read(self, name: str, device: str) -> torch.Tensor:
        return self._checkpoint.read(name, torch.float32).to(device)


class _PassedBy(torch.nn.Module):
    """Stands where a layer is that is not computed now."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        return hidden_states


def _parameter(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)


@contextmanager
def _hooked(layer: torch.nn.Module, on_input: OnInput | None) -> Iterator[None]:
    if on_input is None:
        yield
        return

    def hook(name: str) -> Callable[..., Any]:
        return lambda _, inputs: on_input(name, inputs[0])

    handles = [
        module.register_forward_pre_hook(hook(name)) for name, module in linears(layer).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def linears(layer: torch.nn.Module) -> Mapping[str, torch.nn.Linear]:
    """Return a layer's linear modules by name."""
    return {
        name: module
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
