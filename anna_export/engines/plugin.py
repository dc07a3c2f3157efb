"""The pooling kernel inside a TensorRT 11 engine, through its ahead-of-time plugins.

The engine carries the kernel's PTX and launches it itself: it needs no Python, Triton or plugin.
NVIDIA's decorators read the classes in the annotations, so these may not be strings.
"""

from types import ModuleType
from typing import Any, Final

import torch
from anna_kernels.ahead_of_time import CAPABILITIES, compile_pooling
from anna_kernels.kernel import Variant

from anna_export.engines.capability import Capability
from anna_export.errors import InputError
from anna_export.graph import pooling

PLUGIN: Final = f"{pooling.DOMAIN}::{pooling.NAME}"
_DTYPES: Final = {"BF16": torch.bfloat16, "HALF": torch.float16, "FLOAT": torch.float32}


def register_pooling(
    trt: ModuleType, trtp: Any, capability: Capability, *, lazily: bool = False
) -> None:
    """Register the kernel for the graph's pooling node, once a process.

    Args:
        trt: TensorRT 11.
        trtp: Its `tensorrt.plugin`.
        capability: The GPU that engines are for.
        lazily: Leave the registry alone until a node asks for it, as where there is no GPU.

    Raises:
        InputError: If no kernel is compiled for that GPU.
    """
    number = 10 * capability.major + capability.minor
    if number not in CAPABILITIES:
        names = ", ".join(f"{each // 10}.{each % 10}" for each in CAPABILITIES)
        raise InputError(
            f"expected a compute capability of {names} for the pooling kernel, found {capability}"
        )
    described: Any = trtp.TensorDesc
    offered: Any = list[trtp.AutoTuneCombination]
    launched: Any = tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]

    @trtp.register(PLUGIN, lazy_register=lazily)
    def describe(hidden: described, last: described) -> described:
        """Say what comes of hidden (B, S, D) and last (B,): (B, D) float32."""
        batch, _, dim = hidden.shape_expr
        return trtp.from_shape_expr((batch, dim), trt.float32)

    @trtp.autotune(PLUGIN)
    def offer(hidden: described, last: described, outputs: tuple[described]) -> offered:
        """Offer every type of hidden states, rows one after another."""
        return [trtp.AutoTuneCombination("BF16|FP16|FP32, INT64, FP32", "LINEAR", [1])]

    @trtp.aot_impl(PLUGIN)
    def implement(
        hidden: described, last: described, outputs: tuple[described], tactic: int
    ) -> launched:
        """Compile the kernel, and say how it is launched: a block a row, S beside the pointers."""
        batch, seq, dim = hidden.shape_expr
        variant = Variant(
            dim.constant_value(), _DTYPES[hidden.dtype.name], eps=pooling.SMALLEST_NORM
        )
        kernel = compile_pooling(variant, number)
        parameters = trtp.KernelLaunchParams()
        parameters.grid_x = batch
        parameters.block_x = 32 * kernel.num_warps
        parameters.shared_mem = kernel.shared_bytes
        scalars = trtp.SymIntExprs(1)
        scalars[0] = trtp.SymInt32(seq)
        return kernel.name, kernel.ptx, parameters, scalars
