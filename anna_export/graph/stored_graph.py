"""An artifact's graph, its weights at their real path.

An artifact's files may be links, or have more names than one: runtimes and onnx_ir then refuse to
look for a graph's weights beside it. That they are the listed file is decided here.
"""

from pathlib import Path

import onnx_ir as ir

from anna_export.artifact.folder import Artifact
from anna_export.errors import DamagedError
from anna_export.graph.external_data import DATA_FILE


def weights_path(artifact: Artifact) -> Path:
    """Return where an artifact's weights really lie."""
    return (artifact.folder / DATA_FILE).resolve()


def read_graph(artifact: Artifact, target: str) -> ir.Model:
    """Read the graph for a target; no weight is read.

    Raises:
        InputError: If the artifact has no such graph.
        DamagedError: If a weight lies anywhere but in the data file that the manifest lists.
    """
    model = ir.load(artifact.graph(target))
    listed = DATA_FILE in artifact.manifest.files
    path = str(weights_path(artifact))
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if tensor.location != DATA_FILE or not listed:
            raise DamagedError(
                f"expected {name} in the {DATA_FILE} that the manifest of {artifact.folder} lists, "
                f"found external data at {tensor.path}; copy or export the artifact again"
            )
        # without a folder to stay in, onnx_ir takes the path as it is
        value.const_value = ir.ExternalTensor(
            path, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=name
        )
    return model
