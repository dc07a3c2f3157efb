"""Products by 4-bit weights by ONNX Runtime's MatMulNBits, which never widens a whole weight."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from anna_export.graph.passes.cpu_attention import DOMAIN

# Activations in 8 bits, one scale a block of a token.
_ACCURACY_LEVEL: Final = 4


class MatMulNBits(ir.passes.InPlacePass):
    """Replace DequantizeLinear, Transpose and MatMul by one node over the same stored bytes.

    1. Only where UINT4 codes, (out, in) in blocks along the inputs, go through both to the MatMul
       alone.
    2. Codes and zero points keep names and bytes and are declared as bytes, two numbers in each;
       both operators put the first number in the lower half.
    """

    def requires(self, model: ir.Model) -> None:
        """Refuse blocks whose zero points straddle bytes from one output to the next."""
        for product in model.graph:
            dequantize = _dequantize_of(product)
            if dequantize is not None and _blocks(dequantize) % 2:
                raise ir.passes.PreconditionError(
                    f"expected an even number of blocks in {product.name}, found "
                    f"{_blocks(dequantize)}; keep it in high precision"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every chain that rule 1 allows."""
        graph = model.graph
        chains = [
            (product, dequantize)
            for product in graph
            if (dequantize := _dequantize_of(product)) is not None
        ]
        for product, dequantize in chains:
            graph.opset_imports[DOMAIN] = 1
            codes, scale, zero = dequantize.inputs
            assert codes is not None and codes.shape is not None and zero is not None
            outputs, inputs = codes.shape.numpy()
            block = dequantize.attributes["block_size"].as_int()
            _declare_as_bytes(codes, [outputs, inputs // block, block // 2])
            _declare_as_bytes(zero, [outputs, inputs // block // 2])
            new = ir.node(
                "MatMulNBits",
                [product.inputs[0], codes, scale, zero],
                {
                    "K": inputs,
                    "N": outputs,
                    "bits": 4,
                    "block_size": block,
                    "accuracy_level": _ACCURACY_LEVEL,
                },
                domain=DOMAIN,
                name=product.name,
            )
            new.outputs[0].type, new.outputs[0].shape = (
                product.outputs[0].type,
                product.outputs[0].shape,
            )
            graph.insert_before(product, new)
            ir.convenience.replace_all_uses_with(product.outputs[0], new.outputs[0])
            transposed = product.inputs[1]
            assert transposed is not None
            transpose = transposed.producer()
            assert transpose is not None
            graph.remove([product, transpose, dequantize], safe=True)
        return ir.passes.PassResult(model, modified=bool(chains))


def _dequantize_of(product: ir.Node) -> ir.Node | None:
    """Return the DequantizeLinear whose transposed output a MatMul alone multiplies by."""
    if product.op_type != "MatMul":
        return None
    transpose = _producer(product, 1, "Transpose")
    dequantize = _producer(transpose, 0, "DequantizeLinear") if transpose is not None else None
    if dequantize is None or len(dequantize.inputs) != 3 or not _blocked(dequantize):
        return None
    codes = dequantize.inputs[0]
    stored = all(value is not None and value.is_initializer() for value in dequantize.inputs)
    return dequantize if stored and codes is not None and codes.dtype is ir.DataType.UINT4 else None


def _producer(node: ir.Node, index: int, kind: str) -> ir.Node | None:
    value = node.inputs[index]
    producer = value.producer() if value is not None and len(list(value.uses())) == 1 else None
    return producer if producer is not None and producer.op_type == kind else None


def _blocked(dequantize: ir.Node) -> bool:
    attributes = dequantize.attributes
    return attributes.get_int("block_size", 0) > 0 and attributes.get_int("axis", 1) == 1


def _blocks(dequantize: ir.Node) -> int:
    scale = dequantize.inputs[1]
    assert scale is not None and scale.shape is not None
    return scale.shape.numpy()[1]


def _declare_as_bytes(value: ir.Value, shape: Sequence[int]) -> None:
    packed = value.const_value
    assert packed is not None
    value.const_value = ir.LazyTensor(
        lambda: ir.Tensor(np.frombuffer(packed.tobytes(), np.uint8).reshape(shape)),
        ir.DataType.UINT8,
        ir.Shape(shape),
        name=value.name,
    )
    # not value.dtype: clones share types, see findings/onnx-ir-clone-shares-types.sh
    value.type, value.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape(shape)
