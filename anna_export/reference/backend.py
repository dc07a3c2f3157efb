"""PyTorch as a backend: modules and forward pass are those of transformers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from anna_export.machine.devices import pick_device
from anna_export.reference.head import apply_head, pooled_of_batch
from anna_export.spec import EmbeddingSpec
from anna_export.text.batch import TokenBatch


class PytorchBackend:
    """A Hugging Face model on one device.

    Args:
        model: It returns `last_hidden_state`.
        spec: Its numbers.
        compute_label: What it computes in, and from what.
        device: Where its weights are.
        head_weights: Those of the Dense modules behind it, by their names in a spec's
            `weight_shapes`.
    """

    name = "pytorch"

    def __init__(
        self,
        model: Any,
        spec: EmbeddingSpec,
        compute_label: str,
        device: str = "cpu",
        head_weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.model = model
        self.spec = spec
        self.compute_label = compute_label
        self._device = device
        self._head_weights = {
            name: weight.to(device) for name, weight in (head_weights or {}).items()
        }

    def run(self, batch: TokenBatch) -> np.ndarray:
        """Return (B, spec.embedding_dim) float32 rows; a prefix is computed again."""
        batch = batch.joined()
        with torch.inference_mode():
            hidden = self.model(
                input_ids=self._tensor(batch.ids),
                attention_mask=self._tensor(batch.mask),
                use_cache=False,
            ).last_hidden_state
            head = self.spec.head
            pooled = pooled_of_batch(head, batch)
            vectors: np.ndarray = apply_head(head, self._head_weights, hidden, pooled).cpu().numpy()
        return vectors

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)


def compute_label(device: str) -> str:
    """Say what PyTorch computes in, for verdicts."""
    return f"fp32 in PyTorch on {device.upper()}"


def pick_torch_device(device: str, spec: EmbeddingSpec) -> str:
    """Return "cpu" or "cuda"; "auto" takes CUDA where the model fits.

    Raises:
        InputError: If CUDA was asked for and is not there, or too small.
    """
    # weights, and half as much again for what is computed from them
    room_bytes = 6 * spec.parameters
    has_cuda = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > room_bytes
    return pick_device(
        device,
        has_cuda=has_cuda,
        without="expected PyTorch with a CUDA device and "
        f"{room_bytes / 1e9:.1f} GB free on it, found none; use `device` cpu",
    )
