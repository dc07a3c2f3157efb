"""The tables of rotary embedding."""

import onnx_ir as ir
import torch

from anna_export.graph.tensors import as_ir
from anna_export.spec import EmbeddingSpec


def rotary_tables(spec: EmbeddingSpec, rows: int) -> tuple[ir.LazyTensor, ir.LazyTensor]:
    """Return cosines and sines, (rows, head_dim / 2); in fp32, as the fallback graph needs."""
    half, theta = spec.head_dim // 2, spec.rope_theta

    def table(name: str) -> ir.LazyTensor:
        def compute() -> ir.Tensor:
            # in fp32, as the reference does: the angle's own rounding is part of the model
            steps = torch.arange(0, 2 * half, 2, dtype=torch.int64).float() / (2 * half)
            angles = torch.outer(torch.arange(rows).float(), 1.0 / theta**steps)
            return as_ir(angles.cos() if name == "rotary.cos" else angles.sin(), name)

        return ir.LazyTensor(compute, ir.DataType.FLOAT, ir.Shape([rows, half]), name=name)

    return table("rotary.cos"), table("rotary.sin")
