"""PyTorch's tensors and types as ONNX's."""

from typing import Final

import onnx_ir as ir
import torch

from anna_export.spec import Precision

IR_DTYPES: Final = {
    Precision.FP32: ir.DataType.FLOAT,
    Precision.FP16: ir.DataType.FLOAT16,
    Precision.BF16: ir.DataType.BFLOAT16,
}


def as_ir(tensor: torch.Tensor, name: str) -> ir.Tensor:
    """View a CPU tensor as an ONNX tensor, without a copy."""
    if tensor.dtype is torch.bfloat16:
        words = tensor.view(torch.uint16).numpy()
        return ir.Tensor(words, dtype=ir.DataType.BFLOAT16, shape=ir.Shape(tensor.shape), name=name)
    if tensor.dtype is torch.float8_e4m3fn:
        codes = tensor.view(torch.uint8).numpy()
        shape = ir.Shape(tensor.shape)
        return ir.Tensor(codes, dtype=ir.DataType.FLOAT8E4M3FN, shape=shape, name=name)
    return ir.Tensor(tensor.numpy(), name=name)
