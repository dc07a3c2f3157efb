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
            restored = _restored(product)
            if restored is not None and _blocks(restored) % 2:
                raise ir.passes.PreconditionError(
                    f"expected an even number of blocks in {product.name}, found "
                    f"{_blocks(restored)}; keep it in high precision"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every chain that rule 1 allows."""
        graph = model.graph
        chains = [
            (product, restored) for product in graph if (restored := _restored(product)) is not None
        ]
        for product, restored in chains:
            graph.opset_imports[DOMAIN] = 1
            codes, scale, zero = restored.inputs
            assert codes is not None and codes.shape is not None and zero is not None
            outputs, inputs = codes.shape.numpy()
            block = restored.attributes["block_size"].as_int()
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
            turned = product.inputs[1]
            assert turned is not None
            transpose = turned.producer()
            assert transpose is not None
            graph.remove([product, transpose, restored], safe=True)
        return ir.passes.PassResult(model, modified=bool(chains))


def _restored(product: ir.Node) -> ir.Node | None:
    """Return the DequantizeLinear whose transposed output a MatMul alone multiplies by."""
    if product.op_type != "MatMul":
        return None
    transpose = _giver(product, 1, "Transpose")
    restored = _giver(transpose, 0, "DequantizeLinear") if transpose is not None else None
    if restored is None or len(restored.inputs) != 3 or not _blocked(restored):
        return None
    codes = restored.inputs[0]
    stored = all(value is not None and value.is_initializer() for value in restored.inputs)
    return restored if stored and codes is not None and codes.dtype is ir.DataType.UINT4 else None


def _giver(node: ir.Node, place: int, kind: str) -> ir.Node | None:
    value = node.inputs[place]
    found = value.producer() if value is not None and len(list(value.uses())) == 1 else None
    return found if found is not None and found.op_type == kind else None


def _blocked(restored: ir.Node) -> bool:
    attributes = restored.attributes
    return attributes.get_int("block_size", 0) > 0 and attributes.get_int("axis", 1) == 1


def _blocks(restored: ir.Node) -> int:
    scale = restored.inputs[1]
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
    value.dtype, value.shape = ir.DataType.UINT8, ir.Shape(shape)
