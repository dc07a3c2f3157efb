"""An artifact's stored weights, read as fp32, and the empty model of transformers they fit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import onnx_ir as ir
import torch

from anna_export import quantise
from anna_export.artifact.folder import Artifact
from anna_export.errors import DamagedError
from anna_export.graph.names import CANONICAL
from anna_export.graph.stored_graph import read_graph
from anna_export.quantise.calibration import read_calibration
from anna_export.quantise.linear import Layout
from anna_export.spec import EMBEDDING_WEIGHT
from anna_export.weights.safetensors_files import StoredTensor

# a linear module's fp32 input → what it is multiplied as
Rounding = Callable[[torch.Tensor], torch.Tensor]
_TORCH_DTYPES: Final = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
}


class ReadWeight(Protocol):
    """Gives weights."""

    def __call__(self, name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return a weight by its name in a spec's weight_shapes: fp32, (out, in) for a matrix.

        Args:
            name: Its name.
            rows: (N,) int64 rows of the embedding, to have these alone; None for all.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredModel:
    """An artifact's weights, and what its arithmetic does to what they are multiplied with.

    Args:
        read: Gives one weight, dequantised, by its name.
        roundings: By linear module, how its input is rounded; only where layers are quantised.
    """

    read: ReadWeight
    roundings: Mapping[str, Rounding]

    def listen(self, model: torch.nn.Module) -> None:
        """Make a model's linear modules round their inputs."""
        for name, rounding in self.roundings.items():
            hook = partial(_round_first, rounding)
            model.get_submodule(name).register_forward_pre_hook(hook)


def _round_first(
    rounding: Rounding, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    return (rounding(inputs[0]), *inputs[1:])


def stored_model(artifact: Artifact) -> StoredModel:
    """Return an artifact's weights; they are read one at a time, and no file is mapped.

    Raises:
        DamagedError: If a weight lies anywhere but in the data file that the artifact lists.
    """
    manifest = artifact.manifest
    graph = read_graph(artifact, CANONICAL).graph
    tensors = _Tensors(graph)
    scheme = quantise.scheme_of(manifest)
    linear, table = scheme.linear, scheme.embedding
    calibration = read_calibration(artifact)
    inputs = {} if calibration is None else calibration.quantised_modules(manifest.spec)
    shapes = manifest.spec.weight_shapes()

    def read(name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        if linear is not None and name.removesuffix(".weight") in inputs:
            return linear.dequantize(tensors.parts(name, linear.layout(*shapes[name])))
        if table is not None and name == EMBEDDING_WEIGHT:
            return table.dequantize(tensors.parts(name, table.layout(*shapes[name]), rows))
        weight = tensors.read(name, rows)
        turned = weight.ndim == 2 and name != EMBEDDING_WEIGHT
        weight = (weight.T if turned else weight).float()
        offset = manifest.spec.gain_offset(name)
        return weight - offset if offset else weight

    roundings: dict[str, Rounding] = {}
    if linear is not None and calibration is not None:
        roundings = {
            module: partial(linear.fake_quantize_input, stats=calibration.inputs[name])
            for module, name in inputs.items()
        }
    return StoredModel(read, roundings)


class _Tensors:
    """A graph's initializers, read when they are asked for."""

    def __init__(self, graph: ir.Graph) -> None:
        self._inline: dict[str, ir.TensorProtocol] = {}
        self._placed: dict[str, StoredTensor] = {}
        self._dtypes: dict[str, ir.DataType] = {}
        for name, value in graph.initializers.items():
            tensor = value.const_value
            assert tensor is not None, name
            self._dtypes[name] = tensor.dtype
            if isinstance(tensor, ir.ExternalTensor):
                self._placed[name] = _placed(name, tensor)
            else:
                self._inline[name] = tensor

    def read(self, name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return a tensor, or rows of it, as stored; of two 4-bit numbers a byte, the bytes."""
        if name in self._placed:
            placed = self._placed[name]
            stored, shape = (
                placed.read_bytes() if rows is None else placed.read_rows(rows),
                placed.shape,
            )
            if rows is not None:
                shape, rows = (len(rows), *shape[1:]), None
        else:
            tensor = self._inline[name]
            stored = torch.frombuffer(bytearray(tensor.tobytes()), dtype=torch.uint8)
            shape = tuple(tensor.shape.numpy())
        dtype = self._dtypes[name]
        if dtype.bitwidth == 4:
            read = stored.reshape(*shape[:-1], -1)
        else:
            read = stored.view(_TORCH_DTYPES[dtype]).reshape(shape)
        return read if rows is None else read[rows]

    def parts(
        self, name: str, layout: Layout, rows: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return what is stored of one quantised weight, or of rows of it."""
        return {suffix: self.read(name + suffix, rows) for suffix in layout}


def _placed(name: str, tensor: ir.ExternalTensor) -> StoredTensor:
    """Return where a weight lies."""
    path = Path(tensor.path)
    if tensor.length != tensor.nbytes:
        raise DamagedError(
            f"expected {tensor.nbytes} bytes of external data for {name} in {path}, found "
            f"{tensor.length}; copy or export the artifact again"
        )
    shape = tensor.shape.numpy()
    return StoredTensor(path, name, tensor.dtype.name, shape, tensor.offset or 0, tensor.length)
