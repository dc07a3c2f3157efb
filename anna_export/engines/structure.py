"""What two graphs share that differ in nothing but their weights."""

import hashlib

import onnx_ir as ir


def structure_sha256(model: ir.Model) -> str:
    """Return the sha256 of a graph without its weights: engines of one structure may be refitted.

    Nodes and their attributes count, and each weight's name, type and shape.
    """
    digest = hashlib.sha256()
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in bodies:
        digest.update(f"{[str(value) for value in (*graph.inputs, *graph.outputs)]}\n".encode())
        for node in graph:
            names = [value.name if value is not None else "" for value in node.inputs]
            outputs = [value.name for value in node.outputs]
            attributes = {
                name: node.attributes[name].value
                if not isinstance(node.attributes[name].value, ir.TensorProtocol)
                else node.attributes[name].as_tensor().numpy().tolist()
                for name in sorted(node.attributes)
            }
            told = (node.domain, node.op_type, names, outputs, attributes)
            digest.update(f"{told}\n".encode())
    for name, value in sorted(model.graph.initializers.items()):
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
    return digest.hexdigest()
