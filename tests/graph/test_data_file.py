"""The data file: every weight once for all graphs, on pages, found wherever the folder goes."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from anna_export.artifact.manifest import hash_file
from anna_export.files.stream import Part, Written
from anna_export.graph import external_data as data_file
from anna_export.graph.external_data import DATA_FILE, write_data_file
from anna_export.graph.names import CANONICAL, CPU
from anna_export.progress import Progress
from anna_export.spec import Precision
from anna_export.weights.checkpoint import TORCH_DTYPES, Checkpoint
from tests.support.types import MakeArtifact

PAGE = 4096
SHAPES = {"a": (17, 33), "b": (3, 1001), "c": (5000,)}


def graph(weights: dict[str, ir.TensorProtocol]) -> ir.Model:
    """A graph of nothing but weights, which are its outputs."""
    values = [ir.Value(name=name, const_value=tensor) for name, tensor in weights.items()]
    for value, tensor in zip(values, weights.values(), strict=True):
        value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.shape.numpy())
    only = ir.Graph([], values, nodes=[], initializers=values, opset_imports={"": 23}, name="g")
    return ir.Model(only, ir_version=11)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in SHAPES.items()}


@pytest.fixture
def tensors(arrays: dict[str, np.ndarray]) -> dict[str, ir.TensorProtocol]:
    return {name: ir.tensor(array, name=name) for name, array in arrays.items()}


def placed(model: ir.Model) -> dict[str, ir.ExternalTensor]:
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: t for name, t in tensors.items() if isinstance(t, ir.ExternalTensor)}


def test_weight_of_several_graphs_is_made_and_stored_once(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    computed: list[str] = []

    def lazy(name: str) -> ir.LazyTensor:
        def make() -> ir.TensorProtocol:
            computed.append(name)
            return ir.tensor(arrays[name], name=name)

        return ir.LazyTensor(make, ir.DataType.FLOAT, ir.Shape(SHAPES[name]), name=name)

    first, second = graph({name: lazy(name) for name in "ab"}), graph({n: lazy(n) for n in "bc"})
    written = write_data_file(tmp_path, {"x": first, "y": second})
    assert sorted(computed) == ["a", "b", "c"]
    assert placed(first)["b"].offset == placed(second)["b"].offset
    assert written.size_bytes < sum(array.nbytes for array in arrays.values()) + 3 * PAGE
    for model in (first, second):
        for name, tensor in placed(model).items():
            np.testing.assert_array_equal(tensor.numpy(), arrays[name])


def test_every_weight_starts_on_a_page_and_none_overlaps(
    tensors: dict[str, ir.TensorProtocol], tmp_path: Path
) -> None:
    model = graph(tensors)
    write_data_file(tmp_path, {"x": model})
    spans = sorted((t.offset or 0, t.length or 0) for t in placed(model).values())
    assert [offset % PAGE for offset, _ in spans] == [0, 0, 0]
    for (offset, length), (following, _) in pairwise(spans):
        assert offset + length <= following < offset + length + PAGE


def test_location_is_the_bare_name_of_the_file(
    tensors: dict[str, ir.TensorProtocol], tmp_path: Path
) -> None:
    model = graph(tensors)
    write_data_file(tmp_path, {"x": model})
    ir.save(model, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    stored = [{item.key: item.value for item in t.external_data} for t in proto.graph.initializer]
    assert [entry["location"] for entry in stored] == [DATA_FILE] * 3
    assert str(tmp_path).encode() not in (tmp_path / "model.onnx").read_bytes()


def test_hash_and_size_are_the_files(tensors: dict[str, ir.TensorProtocol], tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    written = write_data_file(
        tmp_path, {"x": graph(tensors)}, lambda done, total: reported.append((done, total))
    )
    entry = hash_file(tmp_path / DATA_FILE)
    assert written == Written(entry.sha256, entry.size_bytes)
    assert len(reported) == 3 and reported == sorted(reported)
    assert reported[-1] == (written.size_bytes, written.size_bytes)


@pytest.mark.parametrize(("numbers", "inline"), [(1, True), (256, True), (257, False)])
def test_small_constant_stays_in_the_graph(tmp_path: Path, numbers: int, inline: bool) -> None:
    array = np.arange(numbers, dtype=np.float32)
    model = graph({"small": ir.tensor(array, name="small")})
    write_data_file(tmp_path, {"x": model})
    assert (not placed(model)) == inline
    tensor = model.graph.initializers["small"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_each_graph_reads_the_same_bytes_in_a_type_and_shape_of_its_own(tmp_path: Path) -> None:
    packed = np.arange(33 * 66, dtype=np.uint8).reshape(33, 66)
    numbers = ir.PackedTensor(packed, ir.DataType.UINT4, shape=ir.Shape([33, 132]), name="w")
    words = ir.tensor(packed.view(np.uint16).reshape(3, 11, 33), name="w")
    graphs = {"x": graph({"w": numbers}), "y": graph({"w": words})}
    written = write_data_file(tmp_path, graphs)
    assert written.size_bytes == packed.nbytes
    first, second = (placed(model)["w"] for model in graphs.values())
    assert (first.dtype, tuple(first.shape)) == (ir.DataType.UINT4, (33, 132))
    assert (second.dtype, tuple(second.shape)) == (ir.DataType.UINT16, (3, 11, 33))
    assert first.tobytes() == second.tobytes() == packed.tobytes()


def test_weights_of_one_name_and_two_sizes_are_our_mistake(tmp_path: Path) -> None:
    first, second = (ir.tensor(np.zeros((300, n), np.float32), name="w") for n in (1, 2))
    with pytest.raises(AssertionError, match="w"):
        write_data_file(tmp_path, {"x": graph({"w": first}), "y": graph({"w": second})})
    assert not (tmp_path / DATA_FILE).exists()


def test_graphs_find_their_weights_after_the_folder_was_moved(
    tensors: dict[str, ir.TensorProtocol], arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    written, moved = tmp_path / "made", tmp_path / "elsewhere" / "moved"
    written.mkdir()
    model = graph(tensors)
    write_data_file(written, {"x": model})
    ir.save(model, written / "model.onnx")
    moved.parent.mkdir()
    written.rename(moved)
    for name, tensor in placed(ir.load(moved / "model.onnx")).items():
        np.testing.assert_array_equal(tensor.numpy(), arrays.pop(name))
    assert not arrays


def test_weight_beyond_two_gigabytes_is_found(
    arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_sparsely(path: Path, parts: Sequence[Part], _: Progress | None) -> Written:
        with path.open("wb") as file:
            for part in parts:
                file.seek(part.offset)
                if part.size_bytes < 1 << 20:
                    file.write(part.make())
            file.truncate(parts[-1].offset + parts[-1].size_bytes)
        return Written("", os.path.getsize(path))

    def never() -> ir.TensorProtocol:
        raise AssertionError("2 GiB would be made")

    monkeypatch.setattr(data_file, "write_parts", write_sparsely)
    huge = ir.LazyTensor(never, ir.DataType.FLOAT, ir.Shape([2**29 + 7]), name="huge")
    model = graph({"b": ir.tensor(arrays["b"], name="b")})
    write_data_file(tmp_path, {"x": graph({"huge": huge}), "y": model})
    ir.save(model, tmp_path / "model.onnx")
    tensor = placed(ir.load(tmp_path / "model.onnx"))["b"]
    assert tensor.offset == 2**31 + PAGE
    np.testing.assert_array_equal(tensor.numpy(), arrays["b"])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    np.testing.assert_array_equal(session.run(["b"], {})[0], arrays["b"])


@pytest.mark.parametrize("precision", TORCH_DTYPES)
def test_artifacts_weights_are_the_checkpoints_to_the_bit(
    base: Path,
    adapter: Path,
    make_artifact: MakeArtifact,
    precision: Precision,
) -> None:
    artifact = make_artifact(base, precision, adapter)
    checkpoint = Checkpoint.open(base, adapter)
    for target in (CANONICAL, CPU):
        initializers = ir.load(artifact.graph(target)).graph.initializers
        for name in checkpoint.spec.weight_shapes():
            turned = name.endswith("_proj.weight")
            wide = precision is Precision.FP16 and "norm" in name  # norms of fp16 are fp32
            dtype = torch.float32 if wide else TORCH_DTYPES[precision]
            weight = checkpoint.read(name, dtype, transpose=turned)
            stored = initializers[name].const_value
            assert stored is not None and stored.shape == tuple(weight.shape)
            assert stored.tobytes() == weight.view(torch.uint8).numpy().tobytes(), name
