"""fp8: E4M3 products for GPUs of compute capability 8.9 and newer.

Weights have one scale an output, activations one static scale a tensor; attention, norms and the
embedding table stay in the high-precision type, in which all scales are stored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir
import torch

from anna_export.errors import InputError
from anna_export.graph.emitter import Emitter
from anna_export.graph.tensors import IR_DTYPES, as_ir
from anna_export.quantise.calibration import ActivationStats
from anna_export.quantise.linear import Layout, LinearInput, Stored
from anna_export.quantise.scheme import WIDENED, Scheme, Thresholds
from anna_export.spec import Precision
from anna_export.weights.checkpoint import TORCH_DTYPES

E4M3: Final = torch.float8_e4m3fn
LARGEST: Final = 448.0
# From the largest number down to the smallest normal one, 2 ** -6. With more than this between the
# largest value and the median, half of all values are subnormal, and lose what precision E4M3 has.
SPAN: Final = LARGEST * 2**6
# A tensor of zeros has no scale of its own.
_SMALLEST: Final = 1e-30


@dataclass(frozen=True, slots=True)
class Fp8Static:
    """W8A8 in E4M3: weights scaled per output, activations per tensor, by calibration.

    Args:
        high_precision: The high-precision type: bf16, fp16 or fp32.

    Raises:
        InputError: If it is another.
    """

    high_precision: Precision

    def __post_init__(self) -> None:
        if self.high_precision not in IR_DTYPES:
            raise InputError(
                f"expected {', '.join(IR_DTYPES)} as fp8's high-precision type, found "
                f"{self.high_precision}"
            )

    def layout(self, outputs: int, inputs: int) -> Layout:
        """The weight turned to (in, out), and one scale an output."""
        return {
            "": (ir.DataType.FLOAT8E4M3FN, (inputs, outputs)),
            "_scale": (IR_DTYPES[self.high_precision], (outputs,)),
        }

    def quantize(self, weight: torch.Tensor, stats: ActivationStats | None = None) -> Stored:
        """Round to nearest, in the scale as it is stored; no calibration is needed."""
        scale = self._scale(weight.abs().amax(dim=1))
        return {"": _codes(weight, scale.float()[:, None]).T, "_scale": scale}

    def dequantize(self, stored: Stored) -> torch.Tensor:
        """Return (out, in) fp32, as the CPU's graph has it: exact where scales are in 16 bits."""
        return stored[""].T.float() * stored["_scale"].float()[:, None]

    def fake_quantize_input(self, x: torch.Tensor, stats: ActivationStats) -> torch.Tensor:
        """Round all tokens in the one scale of the tensor; what is larger is cut to its range."""
        scale = self._scale(torch.tensor(stats.clip_amax)).float()
        return _codes(x, scale).float() * scale

    def skip_reason(self, inputs: int, stats: ActivationStats) -> str | None:
        """Find massive activations: no one scale holds the largest value and the median."""
        ratio = stats.amax / stats.median if stats.median > 0 else math.inf
        if stats.amax == 0 or ratio <= SPAN:
            return None
        return (
            f"massive activation: its largest value {stats.amax:.4g} is {ratio:,.0f} times the "
            f"median {stats.median:.3g}; E4M3's normal numbers span {SPAN:,.0f}"
        )

    def emit_input(self, into: Emitter, x: LinearInput) -> list[ir.Value]:
        """Put a Q/DQ pair behind the input."""
        scale = self._scale(torch.tensor(x.stats.clip_amax))
        name = f"{x.name}.scale"
        step = into.constant(name, as_ir(scale, name))
        zero = into.constant("fp8_zero", as_ir(torch.zeros((), dtype=E4M3), "fp8_zero"))
        # fp16 would divide in fp16, and round twice
        codes = into.op("QuantizeLinear", x.value, step, zero, precision=ir.DataType.FLOAT)
        return [into.op("DequantizeLinear", codes, step)]

    def emit_linear(
        self, into: Emitter, x: list[ir.Value], weight: Mapping[str, ir.Value]
    ) -> ir.Value:
        """Multiply what both stand for; runtimes with E4M3 products take the codes."""
        dequantized = into.op("DequantizeLinear", weight[""], weight["_scale"], axis=1)
        return into.op("MatMul", *x, dequantized)

    def _scale(self, largest: torch.Tensor) -> torch.Tensor:
        """Return the scales, in the high-precision type, that take these values to 448."""
        dtype = TORCH_DTYPES[self.high_precision]
        info = torch.finfo(dtype)
        # No smaller, so that all codes are still apart when multiplied by it, even in fp16, which
        # is subnormal there; 512 and not 448, so that the largest is finite however it is rounded.
        smallest = max(info.smallest_normal, _SMALLEST)
        return (largest / LARGEST).clamp(smallest, info.max / 512).to(dtype)


def _codes(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    # torch before 2.13 casts what is too large to NaN, where QuantizeLinear saturates
    return (x / scale).clamp_(-LARGEST, LARGEST).to(E4M3)


def scheme(high_precision: Precision = Precision.BF16) -> Scheme:
    """Return the scheme with this high-precision type.

    Raises:
        InputError: If it is none of bf16, fp16 and fp32.
    """
    return Scheme(
        Precision.FP8,
        compute_dtype=high_precision,
        cpu_passes=WIDENED,
        cpu_compute_label="E4M3 products emulated in fp32 (fallback of the fp8 graph)",
        thresholds=Thresholds(max_loss=0.01, batch1_min_cosine=0.9999),
        linear=Fp8Static(high_precision),
    )
