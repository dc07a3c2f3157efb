"""The embedding table in 8 bits: one scale a token."""

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir
import torch

from anna_export.graph.emitter import Emitter
from anna_export.quantise.int8_rows import round_rows
from anna_export.quantise.linear import Layout, Stored, register
from anna_export.spec import EMBEDDING_WEIGHT
from anna_export.weights.checkpoint import Checkpoint


class EmbeddingFormat(Protocol):
    """How an embedding table is stored."""

    def layout(self, tokens: int, dim: int) -> Layout:
        """Return what is stored of a (tokens, dim) table."""
        ...

    def quantize(self, table: torch.Tensor) -> Stored:
        """Quantise a (tokens, dim) fp32 table, each of its rows by itself."""
        ...

    def dequantize(self, stored: Stored) -> torch.Tensor:
        """Return the (tokens, dim) fp32 table that the stored numbers stand for."""
        ...


@dataclass(frozen=True, slots=True)
class Int8PerRow:
    """Symmetric int8, one fp32 scale a row."""

    def layout(self, tokens: int, dim: int) -> Layout:
        """The table, and a scale for each of its rows."""
        return {"": (ir.DataType.INT8, (tokens, dim)), "_scale": (ir.DataType.FLOAT, (tokens, 1))}

    def quantize(self, table: torch.Tensor) -> Stored:
        """Round to nearest."""
        codes, scale = round_rows(table)
        return {"": codes.to(torch.int8), "_scale": scale}

    def dequantize(self, stored: Stored) -> torch.Tensor:
        """Return (tokens, dim) fp32."""
        return stored[""].float() * stored["_scale"]


class QuantiseEmbedding(ir.passes.InPlacePass):
    """Store the embedding table in 8 bits.

    1. Codes and scales are looked up, then multiplied: the whole table is never widened.
    """

    def __init__(self, table: EmbeddingFormat, checkpoint: Checkpoint) -> None:
        super().__init__()
        self._table = table
        self._checkpoint = checkpoint

    def requires(self, model: ir.Model) -> None:
        """Refuse a graph without an fp32 embedding table that is looked up once."""
        table = model.graph.initializers.get(EMBEDDING_WEIGHT)
        if table is None or table.dtype is not ir.DataType.FLOAT or len(list(table.uses())) != 1:
            raise ir.passes.PreconditionError(
                f"expected one look-up in an fp32 {EMBEDDING_WEIGHT}; build with build_graph in "
                "fp32"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the look-up."""
        graph = model.graph
        (use,) = graph.initializers[EMBEDDING_WEIGHT].uses()
        lookup = use.node
        ids = lookup.inputs[1]
        graph.initializers.pop(EMBEDDING_WEIGHT)
        layout = self._table.layout(*self._checkpoint.spec.weight_shapes()[EMBEDDING_WEIGHT])
        stored = register(
            graph,
            EMBEDDING_WEIGHT,
            layout,
            lambda: self._table.quantize(self._checkpoint.read(EMBEDDING_WEIGHT, torch.float32)),
        )
        into = Emitter(graph, lookup)
        codes = into.op("Gather", stored[""], ids, axis=0)
        scale = into.op("Gather", stored["_scale"], ids, axis=0)
        widened = into.op("Cast", codes, to=ir.DataType.FLOAT)
        rows = into.op("Mul", widened, scale)
        rows.dtype = ir.DataType.FLOAT
        ir.convenience.replace_all_uses_with(lookup.outputs[0], rows)
        graph.remove(lookup, safe=True)
        return ir.passes.PassResult(model, modified=True)
