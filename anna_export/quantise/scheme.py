"""What a precision is: how its graphs are made, and how close its vectors must stay."""

from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from anna_export.checkpoint import Checkpoint
from anna_export.graph.builder import build_graph
from anna_export.graph.passes.compute_in_fp32 import ComputeInFp32
from anna_export.graph.passes.group_query import GroupQueryAttention
from anna_export.spec import Precision

CANONICAL, CPU = "canonical", "cpu"
FUSED: Final = (GroupQueryAttention(),)
# ONNX Runtime's CPU provider cannot compute in the narrow types
WIDENED: Final = (ComputeInFp32(), GroupQueryAttention())


@dataclass(frozen=True, slots=True)
class Scheme:
    """One precision.

    Args:
        precision: The type weights are stored in.
        cpu_passes: Lower the canonical graph to what ONNX Runtime computes on a CPU.
        worst_cosine: Smallest cosine to the reference that any text may have.
        alone_cosine: Smallest cosine between a text's vectors alone and in a batch.
        alone_max_abs: Largest difference between them; None where only the cosine counts.
    """

    precision: Precision
    cpu_passes: tuple[ir.passes.InPlacePass, ...]
    worst_cosine: float
    alone_cosine: float
    alone_max_abs: float | None = None

    def graphs(self, checkpoint: Checkpoint, max_tokens: int) -> dict[str, ir.Model]:
        """Return one graph for each target, over the same weights, none of them read."""
        canonical, cpu = (build_graph(checkpoint, self.precision, max_tokens) for _ in range(2))
        for rewrite in self.cpu_passes:
            rewrite(cpu)
        return {CANONICAL: canonical, CPU: cpu}
