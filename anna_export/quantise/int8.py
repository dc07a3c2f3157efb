"""int8 for CPUs: weights in one scale an output, activations in one scale a token.

A scale a token, taken from the token itself, keeps a text's vector independent of its neighbours,
and costs as much as one fixed scale (benchmarks/decided/int8_forms.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
import torch

from anna_export.graph.emitter import Emitter
from anna_export.graph.passes.cpu_attention import CpuAttention
from anna_export.graph.passes.matmul_integer import MatMulIntegerToFloat
from anna_export.quantise.calibration import ActivationStats
from anna_export.quantise.embedding import Int8PerRow
from anna_export.quantise.int8_rows import LARGEST, SMALLEST, round_rows
from anna_export.quantise.linear import Layout, LinearInput, Stored
from anna_export.quantise.scheme import Scheme, Thresholds
from anna_export.spec import Precision

# ONNX Runtime's fast kernels take unsigned activations and signed weights
_ZERO: Final = 128


@dataclass(frozen=True, slots=True)
class Int8PerToken:
    """W8A8: symmetric int8 weights per output, symmetric 8-bit activations per token."""

    def layout(self, outputs: int, inputs: int) -> Layout:
        """The weight turned to (in, out), and one scale an output."""
        return {
            "": (ir.DataType.INT8, (inputs, outputs)),
            "_scale": (ir.DataType.FLOAT, (outputs,)),
        }

    def quantize(self, weight: torch.Tensor, stats: ActivationStats | None = None) -> Stored:
        """Round to nearest; no calibration is needed."""
        codes, scale = round_rows(weight)
        return {"": codes.to(torch.int8).T, "_scale": scale[:, 0]}

    def dequantize(self, stored: Stored) -> torch.Tensor:
        """Return (out, in) fp32."""
        return stored[""].T.float() * stored["_scale"][:, None]

    def fake_quantize_input(
        self, x: torch.Tensor, stats: ActivationStats | None = None
    ) -> torch.Tensor:
        """Round each token in its own scale."""
        codes, scale = round_rows(x)
        return codes * scale

    def skip_reason(self, inputs: int, stats: ActivationStats) -> str | None:
        """Every input can be quantised."""
        return None

    def emit_input(self, into: Emitter, x: LinearInput) -> list[ir.Value]:
        """Give 8-bit tokens, (…, in), and their scales, (…, 1)."""
        last = into.constant("axis_last", ir.tensor(np.array([-1])))
        highest = into.op("ReduceMax", x.value, last, keepdims=1)
        lowest = into.op("Neg", into.op("ReduceMin", x.value, last, keepdims=1))
        smallest = into.constant("smallest", ir.tensor(np.float32(SMALLEST)))
        step = into.constant("int8_step", ir.tensor(np.float32(1 / LARGEST)))
        scale = into.op("Mul", into.op("Max", highest, lowest, smallest), step)
        zero = ir.tensor(np.array([_ZERO], dtype=np.uint8))
        zeros = into.op("ConstantOfShape", into.op("Shape", scale), value=zero)
        # a token is one block of its channels
        codes = into.op("QuantizeLinear", x.value, scale, zeros, axis=-1, block_size=x.channels)
        return [codes, scale]

    def emit_linear(
        self, into: Emitter, x: list[ir.Value], weight: Mapping[str, ir.Value]
    ) -> ir.Value:
        """Multiply integers, then by both scales."""
        codes, scale = x
        zero = into.constant("int8_zero", ir.tensor(np.array(_ZERO, dtype=np.uint8)))
        product = into.op("MatMulInteger", codes, weight[""], zero)
        product = into.op("Cast", product, to=ir.DataType.FLOAT)
        return into.op("Mul", into.op("Mul", product, weight["_scale"]), scale)


SCHEME = Scheme(
    Precision.INT8,
    compute_dtype=Precision.FP32,
    cpu_passes=(MatMulIntegerToFloat(), CpuAttention()),
    cpu_compute_label="int8 products on CPU, fp32 elsewhere",
    thresholds=Thresholds(max_loss=0.01, batch1_min_cosine=0.9999),
    linear=Int8PerToken(),
    embedding=Int8PerRow(),
    served_bytes=1.0,
)
