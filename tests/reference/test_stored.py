"""An artifact's stored weights: read from its own data file, whole, or refused in one line."""

import os
import shutil
from pathlib import Path

import onnx
import pytest

from anna_export.artifact.folder import Artifact
from anna_export.errors import DamagedError
from anna_export.graph.external_data import DATA_FILE
from anna_export.graph.names import CANONICAL
from anna_export.reference.stored import stored_model


@pytest.fixture
def copy(artifact: Artifact, tmp_path: Path) -> Artifact:
    """A copy of the artifact, to damage after it was opened."""
    folder = Path(shutil.copytree(artifact.folder, tmp_path / "copy"))
    return Artifact(folder, artifact.manifest)


def read_all(artifact: Artifact) -> None:
    read = stored_model(artifact).read
    for name, shape in artifact.manifest.spec.weight_shapes().items():
        assert tuple(read(name).shape) == shape


def test_weights_have_the_shapes_of_the_model(copy: Artifact) -> None:
    read_all(copy)


def test_data_file_that_ends_early_is_refused(copy: Artifact) -> None:
    os.truncate(copy.folder / DATA_FILE, (copy.folder / DATA_FILE).stat().st_size - 3)
    with pytest.raises(DamagedError, match="expected all of"):
        read_all(copy)


def test_weight_of_fewer_bytes_than_its_shape_is_refused(copy: Artifact) -> None:
    graph = copy.graph(CANONICAL)
    model = onnx.load(graph, load_external_data=False)
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    next(entry for entry in entries if entry.key == "length").value = "8"
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(DamagedError, match=r"bytes of external data for .* found 8"):
        stored_model(copy)
