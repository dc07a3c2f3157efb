"""A matrix that is made a block of rows at a time, for it may be larger than memory should hold."""

from collections.abc import Callable, Iterator
from functools import partial

import onnx_ir as ir
import torch

from anna_export.weights.checkpoint import row_blocks

# (N,) int64 rows → the tensor of these alone
MakeRows = Callable[[torch.Tensor], ir.Tensor]


class InRowBlocks(ir.LazyTensor):
    """A lazy (rows, columns) tensor that can also be made in parts."""

    def __init__(
        self, make: MakeRows, dtype: ir.DataType, shape: tuple[int, ...], name: str
    ) -> None:
        rows = torch.arange(shape[0])
        super().__init__(partial(make, rows), dtype, ir.Shape(shape), name=name)
        self._make_rows = make

    def blocks(self) -> Iterator[tuple[int, Callable[[], ir.Tensor]]]:
        """Yield the bytes of each block, and what makes it."""
        rows = self.shape.numpy()[0]
        row_bytes = self.nbytes // rows
        for block in row_blocks(rows, row_bytes):
            yield len(block) * row_bytes, partial(self._make_rows, block)
