"""What TensorRT would take wrongly or not at all, refused before it parses."""

import onnx_ir as ir

from anna_export.errors import DamagedError

# What the parser of TensorRT 11 reads; it only warns of newer ones.
LARGEST_OPSET = 25
_QUANTISING = ("QuantizeLinear", "DequantizeLinear")


def require_compatible(model: ir.Model, compute_dtype: ir.DataType) -> None:
    """Refuse a graph that the parser would misread without a word.

    Args:
        model: The graph.
        compute_dtype: The high-precision type: that of every scale, for its output has it too.

    Raises:
        DamagedError: Naming the node.
    """
    opset = model.graph.opset_imports.get("", 0)
    if not 1 <= opset <= LARGEST_OPSET:
        raise DamagedError(
            f"expected opset 1 to {LARGEST_OPSET}, found {opset}; export the artifact again"
        )
    for node in model.graph:
        if node.op_type not in _QUANTISING:
            continue
        scale = node.inputs[1]
        assert scale is not None
        if scale.dtype is not compute_dtype:
            raise DamagedError(
                f"expected the scale {scale.name} in {compute_dtype}, found {scale.dtype} at "
                f"{_layer_of(node)}; export the artifact again"
            )


def _layer_of(node: ir.Node) -> str:
    """Name the layer that a node is, or that it rounds an input of."""
    user = node
    while not (user.name or "").startswith("layers."):
        uses = list(user.outputs[0].uses())
        if not uses:
            return node.name or node.op_type
        user = uses[0].node
    return user.name or ""
