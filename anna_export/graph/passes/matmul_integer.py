"""Integer products by ONNX Runtime's MatMulIntegerToFloat, which scales as it multiplies."""

import numpy as np
import onnx_ir as ir

from anna_export.graph.emitter import Emitter
from anna_export.graph.passes.cpu_attention import DOMAIN


class MatMulIntegerToFloat(ir.passes.InPlacePass):
    """Replace MatMulInteger, Cast and Mul by one node.

    1. Only where the product goes to the Cast alone, that to fp32 and on to the Mul alone, and the
       Mul's other factor is a constant vector: one scale an output.
    2. The product's zero point stays; the weight has none.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every chain that rule 1 allows."""
        graph, scale_one = model.graph, ir.tensor(np.float32(1), name="scale_one")
        chains = [chain for node in graph if (chain := _chain(node)) is not None]
        for product, cast, scaled, scale in chains:
            graph.opset_imports[DOMAIN] = 1
            codes, weight, zero = product.inputs
            new = ir.node(
                "MatMulIntegerToFloat",
                [
                    *(codes, weight),
                    Emitter(graph, product).constant("scale_one", scale_one),
                    *(scale, zero),
                ],
                domain=DOMAIN,
                name=product.name,
            )
            graph.insert_before(scaled, new)
            ir.convenience.replace_all_uses_with(scaled.outputs[0], new.outputs[0])
            graph.remove([scaled, cast, product], safe=True)
        return ir.passes.PassResult(model, modified=bool(chains))


def _chain(product: ir.Node) -> tuple[ir.Node, ir.Node, ir.Node, ir.Value] | None:
    if product.op_type != "MatMulInteger" or len(product.inputs) != 3:
        return None
    cast = _only_user(product)
    if (
        cast is None
        or cast.op_type != "Cast"
        or cast.attributes["to"].as_int() != ir.DataType.FLOAT
    ):
        return None
    scaled = _only_user(cast)
    if scaled is None or scaled.op_type != "Mul":
        return None
    scale = scaled.inputs[1]
    if scale is None or not scale.is_initializer() or scale.shape is None or len(scale.shape) != 1:
        return None
    return product, cast, scaled, scale


def _only_user(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and uses[0].idx == 0 else None
