"""One external data file for all graphs of an artifact: every weight is stored once."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from anna_export.files.stream import Part, Written, write_parts
from anna_export.graph.row_blocks import InRowBlocks
from anna_export.progress import Progress

DATA_FILE: Final = "model.onnx.data"
# Readers map the file: tensors start on a page. Small constants stay in the graph itself.
_PAGE_BYTES = 4096
_INLINE_BYTES = 1024


def write_data_file(
    folder: Path, graphs: Mapping[str, ir.Model], progress: Progress | None = None
) -> Written:
    """Write the weights of all graphs to one file and point the graphs at it.

    Args:
        folder: Where the file goes.
        graphs: By target; initializers of one name are the same bytes, whatever type and shape each
            graph reads in them.
        progress: Told the bytes done.

    Returns:
        The file's hash and size.

    Raises:
        SpaceError: If the disk fills up.
    """
    weights = _shared_weights(graphs)
    parts: list[Part] = []
    offsets: dict[str, int] = {}
    offset = 0
    for name, weight in weights.items():
        offset += -offset % _PAGE_BYTES
        offsets[name] = offset
        for size_bytes, make in _blocks(weight):
            parts.append(Part(offset, size_bytes, make))
            offset += size_bytes
    written = write_parts(folder / DATA_FILE, parts, progress)
    for model in graphs.values():
        for name, value in model.graph.initializers.items():
            if name in offsets and value.const_value is not None:
                value.const_value = _placed(value.const_value, name, offsets[name], folder)
    return written


def _shared_weights(graphs: Mapping[str, ir.Model]) -> dict[str, ir.TensorProtocol]:
    weights: dict[str, ir.TensorProtocol] = {}
    for model in graphs.values():
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            assert tensor is not None, name
            first = weights.setdefault(name, tensor)
            assert first.nbytes == tensor.nbytes, name
    return {name: tensor for name, tensor in weights.items() if tensor.nbytes > _INLINE_BYTES}


def _blocks(weight: ir.TensorProtocol) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
    """Yield the bytes of each part of a weight, and what makes it."""
    if isinstance(weight, InRowBlocks):
        for size_bytes, make in weight.blocks():
            yield size_bytes, partial(_raw_bytes, make)
    elif isinstance(weight, ir.LazyTensor):
        yield weight.nbytes, partial(_raw_bytes, weight.raw)
    else:
        yield weight.nbytes, partial(_raw_bytes, lambda: weight)


def _raw_bytes(make: Callable[[], ir.TensorProtocol]) -> np.ndarray:
    # as it is stored: two 4-bit numbers stay one byte
    return np.asarray(make().raw).reshape(-1).view(np.uint8)


def _placed(weight: ir.TensorProtocol, name: str, offset: int, folder: Path) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        DATA_FILE,
        offset,
        weight.nbytes,
        weight.dtype,
        shape=ir.Shape(weight.shape.numpy()),
        name=name,
        base_dir=folder,
    )
