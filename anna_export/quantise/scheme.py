"""What a precision is: how its graphs are made, and how close its vectors must stay."""

from dataclasses import dataclass, replace
from typing import Final

import onnx_ir as ir

from anna_export.errors import InputError
from anna_export.graph.builder import build_graph
from anna_export.graph.names import CANONICAL, CPU
from anna_export.graph.passes.compute_in_fp32 import ComputeInFp32
from anna_export.graph.passes.cpu_attention import CpuAttention
from anna_export.quantise.calibration import Calibration
from anna_export.quantise.embedding import EmbeddingFormat, QuantiseEmbedding
from anna_export.quantise.linear import LinearFormat, QuantiseLinear
from anna_export.spec import Precision
from anna_export.weights.checkpoint import Checkpoint

FUSED: Final = (CpuAttention(),)
# ONNX Runtime's CPU provider cannot compute in the narrow types
WIDENED: Final = (ComputeInFp32(), CpuAttention())


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The acceptance thresholds of vectors; None where that is not judged.

    Args:
        min_cosine: Smallest cosine to the reference that any text may have.
        max_loss: Largest mean 1 - cosine to the reference.
        batch1_min_cosine: Smallest cosine between a text's vector at batch size 1 and its vector in
            a padded batch.
        batch1_max_abs: Largest difference between a value of the two.
    """

    min_cosine: float | None = None
    max_loss: float | None = None
    batch1_min_cosine: float | None = None
    batch1_max_abs: float | None = None


@dataclass(frozen=True, slots=True)
class Scheme:
    """One precision.

    Args:
        precision: Its name.
        compute_dtype: Type of all weights and products that are not quantised.
        cpu_passes: Lower the canonical graph to what ONNX Runtime computes on a CPU.
        cpu_compute_label: What that computes in, for verdicts.
        thresholds: How close its vectors must stay.
        linear: How linear layers are quantised; None where they are not.
        embedding: How the embedding table is; None where it is not.
        served_bytes: Bytes that ONNX Runtime's CPU provider holds of a quantised number, packed
            for its kernels; None where it computes with fp32 copies of the weights.
    """

    precision: Precision
    compute_dtype: Precision
    cpu_passes: tuple[ir.passes.InPlacePass, ...]
    cpu_compute_label: str
    thresholds: Thresholds
    linear: LinearFormat | None = None
    embedding: EmbeddingFormat | None = None
    served_bytes: float | None = None

    @property
    def dequantises(self) -> bool:
        """Whether the CPU provider widens quantised weights to fp32, anew for every run."""
        return self.linear is not None and self.served_bytes is None

    def with_max_loss(self, max_loss: float | None) -> "Scheme":
        """Return the scheme with another bound on its loss; 1 turns it off.

        Raises:
            InputError: If the scheme is judged by its worst cosine, or the bound is no loss.
        """
        if max_loss is None:
            return self
        if self.linear is None:
            raise InputError(
                f"expected `max_loss` with fp8, int8 or int4, found it with "
                f"{self.precision}, which is held to a worst cosine; leave it out"
            )
        if not 0 < max_loss <= 1:
            raise InputError(f"expected `max_loss` above 0 and at most 1, found {max_loss}")
        return replace(self, thresholds=replace(self.thresholds, max_loss=max_loss))

    def graphs(
        self, checkpoint: Checkpoint, max_tokens: int, calibration: Calibration | None = None
    ) -> dict[str, ir.Model]:
        """Return one graph for each target, over the same weights, none of them read."""
        canonical = self._canonical(checkpoint, max_tokens, calibration)
        # the clone shares the tensors, which stay unread
        cpu = ir.passes.Sequential(*self.cpu_passes)(canonical.clone()).model
        return {CANONICAL: canonical, CPU: cpu}

    def _canonical(
        self, checkpoint: Checkpoint, max_tokens: int, calibration: Calibration | None
    ) -> ir.Model:
        model = build_graph(checkpoint, self.compute_dtype, max_tokens)
        if self.linear is not None:
            assert calibration is not None, "a quantised scheme is calibrated first"
            QuantiseLinear(self.linear, checkpoint, calibration)(model)
        if self.embedding is not None:
            QuantiseEmbedding(self.embedding, checkpoint)(model)
        return model
