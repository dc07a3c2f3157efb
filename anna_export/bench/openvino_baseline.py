"""OpenVINO as a baseline: the artifact's stored weights, in the precision it chooses itself."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anna_export.artifact.folder import open_artifact
from anna_export.bench.opening import Opened
from anna_export.encoder import Encoder
from anna_export.errors import ExtraError, UnsupportedError
from anna_export.spec import EmbeddingSpec
from anna_export.text.batch import TokenBatch


class OpenVinoBackend:
    """A model that OpenVINO has compiled for this processor.

    Args:
        request: Its inference request: ids and mask to unit vectors.
        spec: The model's numbers.
        compute_label: What it computes in.
    """

    name = "openvino"

    def __init__(self, request: Any, spec: EmbeddingSpec, compute_label: str) -> None:
        self._request, self.spec, self.compute_label = request, spec, compute_label

    def run(self, batch: TokenBatch) -> np.ndarray:
        """Return (B, spec.embedding_dim) float32 rows."""
        batch = batch.joined()
        vectors: np.ndarray = self._request.infer({0: batch.ids, 1: batch.mask})[0].copy()
        return vectors


@dataclass(frozen=True, slots=True)
class OpenOpenVino:
    """Converts an artifact's weights, traced in PyTorch, and compiles them for latency."""

    folder: Path
    prompt: str | None
    threads: int | None

    def __call__(self) -> Opened:
        """Load it.

        Raises:
            ExtraError: If OpenVINO is not installed.
            UnsupportedError: If the model leaves its prompts' tokens out of the pooling.
        """
        artifact = open_artifact(self.folder)
        spec = artifact.manifest.spec
        if spec.head.leaves_out_prompt:
            raise UnsupportedError(
                f"expected a model that pools its prompts' tokens too, found {self.folder} with "
                f"{spec.head.describe()}; leave out the baseline openvino"
            )
        # it would tell its makers of every conversion
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            import openvino
        except ImportError:
            raise ExtraError("expected openvino, found none; pip install openvino") from None
        core = openvino.Core()
        narrow = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        threads = self.threads or len(os.sched_getaffinity(0))
        compiled = core.compile_model(
            _converted(openvino, self.folder),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "bf16" if narrow else "f32",
            },
        )
        version = openvino.__version__.split("-")[0]
        compute_label = f"{'bf16' if narrow else 'fp32'} on CPU, from the artifact's stored weights"
        backend = OpenVinoBackend(compiled.create_infer_request(), spec, compute_label)
        encoder = Encoder(backend, artifact.tokeniser(), artifact.manifest.prompts)
        return Opened(
            f"OpenVINO {version}", compute_label, lambda texts: encoder.encode(texts, self.prompt)
        )


def _converted(openvino: Any, folder: Path) -> Any:
    """Return the model in OpenVINO's form."""
    import torch

    from anna_export.reference.head import apply_head, head_weights, pooled_tokens
    from anna_export.reference.model import empty_model
    from anna_export.reference.stored import stored_model

    artifact = open_artifact(folder)
    spec, stored = artifact.manifest.spec, stored_model(artifact)
    model, weights = empty_model(spec), head_weights(spec.head, stored.read)
    model.load_state_dict({name: stored.read(name) for name in spec.decoder_shapes()}, assign=True)

    class Embedding(torch.nn.Module):
        """The model and its head."""

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            ).last_hidden_state
            positions = torch.arange(input_ids.shape[1])
            pooled = pooled_tokens(spec.head, positions, attention_mask.sum(1))
            return apply_head(spec.head, weights, hidden, pooled)

    ids = torch.arange(3, 17).reshape(2, 7) % spec.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    embedding = Embedding()
    embedding.model = model
    with torch.inference_mode():
        return openvino.convert_model(
            embedding.eval(),
            example_input={"input_ids": ids, "attention_mask": mask},
            input=[
                ("input_ids", [-1, -1], openvino.Type.i64),
                ("attention_mask", [-1, -1], openvino.Type.i64),
            ],
        )
