"""Quantised linear layers: how one is stored, what it rounds, and the pass that puts them in."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import onnx_ir as ir
import torch

from anna_export.graph.emitter import Emitter
from anna_export.graph.tensors import as_ir
from anna_export.quantise.calibration import ActivationStats, Calibration
from anna_export.weights.checkpoint import Checkpoint

# What is stored of a weight: a suffix to its name ("", "_scale") → type and shape.
Layout = Mapping[str, tuple[ir.DataType, tuple[int, ...]]]
Stored = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LinearInput:
    """A linear input in a graph: (…, channels), its name and its statistics."""

    value: ir.Value
    name: str
    channels: int
    stats: ActivationStats


class LinearFormat(Protocol):
    """How a linear layer is stored and computed: the same in graph, emulation and artifact."""

    def layout(self, outputs: int, inputs: int) -> Layout:
        """Return what is stored of an (outputs, inputs) weight."""
        ...

    def quantize(self, weight: torch.Tensor, stats: ActivationStats) -> Stored:
        """Quantise an (out, in) fp32 weight; 4-bit numbers lie two in a byte."""
        ...

    def dequantize(self, stored: Stored) -> torch.Tensor:
        """Return the (out, in) fp32 weight that the stored numbers stand for."""
        ...

    def fake_quantize_input(self, x: torch.Tensor, stats: ActivationStats) -> torch.Tensor:
        """Return what the layer computes with in place of x, (…, in) fp32."""
        ...

    def skip_reason(self, inputs: int, stats: ActivationStats) -> str | None:
        """Say why layers with this input cannot be quantised, if they cannot."""
        ...

    def emit_input(self, into: Emitter, x: LinearInput) -> list[ir.Value]:
        """Add the nodes that round an input; each layer that reads it is given their outputs."""
        ...

    def emit_linear(
        self, into: Emitter, x: list[ir.Value], weight: Mapping[str, ir.Value]
    ) -> ir.Value:
        """Add the nodes of one layer over its stored tensors, and return its output."""
        ...


class QuantiseLinear(ir.passes.InPlacePass):
    """Quantise the linear layers of a canonical graph.

    1. Every MatMul named as a linear module, but for those whose input is unquantized.
    2. Layers that share an input share the nodes that round it.
    3. The stored tensors take the weight's name; they are computed when they are written.
    4. The node that gives the layer's output takes the layer's name.
    """

    def __init__(
        self, linear: LinearFormat, checkpoint: Checkpoint, calibration: Calibration
    ) -> None:
        super().__init__()
        self._linear = linear
        self._checkpoint = checkpoint
        self._calibration = calibration
        self._modules = calibration.quantised_modules(checkpoint.spec)
        self._shapes = checkpoint.spec.weight_shapes()

    def requires(self, model: ir.Model) -> None:
        """Refuse a graph without one of the layers that are to be quantised."""
        products = (node for node in model.graph if node.op_type == "MatMul")
        unquantised = {node.name for node in products if _is_stored(node.inputs[1])}
        if missing := self._modules.keys() - unquantised:
            raise ir.passes.PreconditionError(
                f"expected a MatMul by a stored weight named {min(missing)}, found none; build "
                "with build_graph"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every layer that rule 1 names."""
        graph, modules = model.graph, self._modules
        rounded: dict[ir.Value, list[ir.Value]] = {}
        for node in [node for node in graph if node.name in modules]:
            x, name = node.inputs[0], modules[node.name or ""]
            assert x is not None
            stats = self._calibration.inputs[name]
            into = Emitter(graph, node)
            if x not in rounded:
                channels = self._shapes[f"{node.name}.weight"][1]
                linear_input = LinearInput(x, name, channels, stats)
                rounded[x] = self._linear.emit_input(into, linear_input)
            weight = self._store(graph, node, stats)
            into.replace_node(self._linear.emit_linear(into, rounded[x], weight))
        return ir.passes.PassResult(model, modified=bool(rounded))

    def _store(self, graph: ir.Graph, node: ir.Node, stats: ActivationStats) -> dict[str, ir.Value]:
        """Put a layer's stored tensors, as yet uncomputed, in the place of its weight."""
        name = f"{node.name}.weight"
        graph.initializers.pop(name)
        return register(
            graph,
            name,
            self._linear.layout(*self._shapes[name]),
            lambda: self._linear.quantize(self._checkpoint.read(name, torch.float32), stats),
        )


def _is_stored(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def register(
    graph: ir.Graph, name: str, layout: Layout, compute: Callable[[], Stored]
) -> dict[str, ir.Value]:
    """Add the initializers of one stored weight, computed together when the first is read."""
    once = _Once(compute)
    values = {}
    for suffix, (dtype, shape) in layout.items():
        tensor = ir.LazyTensor(
            partial(once.take, suffix, name + suffix, dtype, shape), dtype, ir.Shape(shape)
        )
        value = ir.val(name + suffix, dtype=dtype, shape=shape, const_value=tensor)
        graph.register_initializer(value)
        values[suffix] = value
    return values


class _Once:
    """Computes several tensors at once; each can be taken once, from any thread."""

    def __init__(self, compute: Callable[[], Stored]) -> None:
        self._compute = compute
        self._left: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()

    def take(
        self, suffix: str, name: str, dtype: ir.DataType, shape: tuple[int, ...]
    ) -> ir.TensorProtocol:
        with self._lock:
            if suffix not in self._left:
                self._left = dict(self._compute())
            tensor = self._left.pop(suffix).contiguous()
        if dtype.bitwidth < 8:
            return ir.PackedTensor(tensor.numpy(), dtype, shape=shape, name=name)
        return as_ir(tensor, name)
