"""A graph under way: its nodes, and a checkpoint's weights in it, which stay unread."""

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from anna_export.graph.row_blocks import InRowBlocks
from anna_export.graph.tensors import IR_DTYPES, as_ir
from anna_export.spec import EMBEDDING_WEIGHT, Precision
from anna_export.weights.checkpoint import TORCH_DTYPES, Checkpoint


class Recording:
    """Nodes and initializers, and the steps that every layer is made of.

    Args:
        checkpoint: Where the weights are.
        precision: Type of weights and products. In fp16 the residual stream and the norms are
            fp32: real models have activations there that fp16 cannot hold.
    """

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.shapes = self.spec.weight_shapes()
        self.precision = precision
        wide = precision is Precision.FP16
        self.residual_precision = Precision.FP32 if wide else precision
        self.tape = ir.tape.Tape()

    def op(
        self, kind: str, *inputs: ir.Value | None, name: str | None = None, **attributes: Any
    ) -> ir.Value:
        """Add a standard node of one output."""
        return self.tape.op(kind, inputs, attributes, name=name)

    def int64(self, name: str, value: int | list[int]) -> ir.Value:
        """Return the constant of this name, int64."""
        return self.constant(name, np.array(value, dtype=np.int64))

    def constant(self, name: str, value: np.ndarray) -> ir.Value:
        """Return the constant of this name, made where it is not there yet."""
        for constant in self.tape.initializers:
            if constant.name == name:
                return constant
        return self.tape.initializer(ir.tensor(value, name=name))

    def weight(self, name: str, precision: Precision, *, transpose: bool = False) -> ir.Value:
        """Return a weight as it is used: of some families, a norm's has 1 added."""
        checkpoint, dtype = self.checkpoint, TORCH_DTYPES[precision]
        shape = ir.Shape(reversed(self.shapes[name]) if transpose else self.shapes[name])
        offset = self.spec.gain_offset(name)

        if name == EMBEDDING_WEIGHT and not transpose:

            def read_rows(rows: torch.Tensor) -> ir.Tensor:
                return as_ir(checkpoint.read(name, dtype, rows=rows), name)

            table = InRowBlocks(read_rows, IR_DTYPES[precision], self.shapes[name], name)
            return self.tape.initializer(table)

        def read() -> ir.Tensor:
            if offset:
                gains = checkpoint.read(name, torch.float32) + offset
                return as_ir(gains.to(dtype), name)
            return as_ir(checkpoint.read(name, dtype, transpose=transpose), name)

        return self.tape.initializer(ir.LazyTensor(read, IR_DTYPES[precision], shape, name=name))

    def linear(self, x: ir.Value, module: str) -> ir.Value:
        """Multiply by a linear module's weight, and add its bias if it has one."""
        weight = self.weight(f"{module}.weight", self.precision, transpose=True)
        product = self.op("MatMul", x, weight, name=module)
        if f"{module}.bias" not in self.shapes:
            return product
        return self.op("Add", product, self.weight(f"{module}.bias", self.precision))

    def norm(self, x: ir.Value, module: str, precision: Precision | None = None) -> ir.Value:
        """Normalise the last axis, in the residual stream's type unless another is given."""
        weight = self.weight(f"{module}.weight", precision or self.residual_precision)
        epsilon = self.spec.norm_eps
        return self.op("RMSNormalization", x, weight, name=module, axis=-1, epsilon=epsilon)

    def normed(self, x: ir.Value, module: str) -> ir.Value:
        """Normalise the residual stream; the result is in the matrix products' type."""
        return self.narrow(self.norm(x, module))

    def add(self, x: ir.Value, update: ir.Value, layer: str, norm: str | None) -> ir.Value:
        """Add what a block computed to the residual stream, normalised where its family does."""
        update = self.widen(update)
        return self.op("Add", x, update if norm is None else self.norm(update, f"{layer}.{norm}"))

    def narrow(self, x: ir.Value) -> ir.Value:
        """Cast the residual stream to the products' type."""
        return self.cast(x, self.residual_precision, self.precision)

    def widen(self, x: ir.Value) -> ir.Value:
        """Cast a product to the residual stream's type."""
        return self.cast(x, self.precision, self.residual_precision)

    def cast(self, x: ir.Value, source: Precision, target: Precision) -> ir.Value:
        """Cast where the types differ."""
        x.dtype = IR_DTYPES[source]  # passes must know what is cast
        if source is target:
            return x
        return self.op("Cast", x, to=IR_DTYPES[target])
