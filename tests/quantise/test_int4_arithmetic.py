"""int4 computes what its emulation does, layer by layer and from end to end."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from anna_export.artifact.folder import Artifact
from anna_export.backends.pytorch import open_backend
from anna_export.graph.emitter import Emitter
from anna_export.graph.names import CANONICAL, CPU
from anna_export.graph.passes.matmul_nbits import MatMulNBits
from anna_export.quantise.calibration import ActivationStats
from anna_export.quantise.int4 import Int4Blocks
from anna_export.quantise.linear import LinearInput, register
from anna_export.reference.load import open_reference
from anna_export.reference.stored import stored_model
from anna_export.text.batch import TokenBatch
from tests.support.types import MakeBatch, Probe, RunGraph

FORMAT = Int4Blocks()


def stats_of(inputs: int, seed: int = 0) -> ActivationStats:
    """What calibration might have seen: channels of very unlike power."""
    torch.manual_seed(seed)
    return ActivationStats(1.0, 1.0, 1.0, torch.randn(inputs).exp().square())


# -- one layer --


def one_layer(weight: torch.Tensor, stats: ActivationStats, block: int = 32) -> ir.Model:
    """A canonical graph of one quantised layer, (B, S, in) to (B, S, out)."""
    outputs, inputs = weight.shape
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["batch", "sequence", inputs])
    y = ir.val("y", dtype=ir.DataType.FLOAT, shape=["batch", "sequence", outputs])
    end = ir.node("Identity", [x], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[end], opset_imports={"": 23}, name="layer")
    linear = Int4Blocks(block)
    stored = register(
        graph, "w", linear.layout(outputs, inputs), lambda: linear.quantize(weight, stats)
    )
    into = Emitter(graph, end)
    rounded = linear.emit_input(into, LinearInput(x, "x", inputs, stats))
    end.replace_input_with(0, linear.emit_linear(into, rounded, stored))
    return ir.Model(graph, ir_version=11)


def run(model: ir.Model, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def relative(computed: torch.Tensor, truth: torch.Tensor) -> float:
    return float((computed - truth).abs().max() / truth.abs().max())


# one output, odd counts of outputs and tokens, an odd count of pairs of blocks, and one of blocks
LAYERS = [(1, 64, 1), (37, 192, 1), (37, 192, 3), (129, 320, 65), (37, 224, 33)]


@pytest.mark.parametrize(("outputs", "inputs", "tokens"), LAYERS)
def test_canonical_layer_is_the_product_by_the_restored_weight(
    outputs: int, inputs: int, tokens: int
) -> None:
    stats, weight = stats_of(inputs), torch.randn(outputs, inputs)
    x = torch.randn(2, tokens, inputs)
    truth = x @ FORMAT.dequantize(FORMAT.quantize(weight, stats)).T
    # weights are equal bit by bit: only the order of sums differs
    assert relative(run(one_layer(weight, stats), x), truth) <= 2e-6


@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize(
    ("outputs", "inputs", "tokens"), [(37, 256, 1), (129, 1280, 65), (37, 640, 33)]
)
def test_lowered_layer_rounds_inputs_as_the_emulation_does(
    outputs: int, inputs: int, tokens: int, block: int
) -> None:
    stats, weight, linear = stats_of(inputs), torch.randn(outputs, inputs), Int4Blocks(block)
    x = torch.randn(2, tokens, inputs) * torch.randn(inputs).exp()
    dequantized = linear.dequantize(linear.quantize(weight, stats))
    model = one_layer(weight, stats, block)
    MatMulNBits()(model)
    computed = run(model, x)
    # sums of integers are exact and a tie between two codes is rare in so few numbers; without
    # rounding, or with one scale a token, this is 3e-3 and more
    assert relative(computed, linear.fake_quantize_input(x) @ dequantized.T) <= 5e-6
    assert relative(computed, x @ dequantized.T) > 1e-3


# -- all layers of a model --


def layers_of(graph: ir.Graph, kind: str) -> Iterator[tuple[str, ir.Value, ir.Value]]:
    """Yield each quantised module's name, its input and its output."""
    for product in graph:
        x = product.inputs[0] if product.inputs else None
        weight = product.inputs[1] if len(product.inputs) > 1 else None
        unquantized = kind == "MatMul" and weight is not None and weight.is_initializer()
        if product.op_type == kind and x is not None and not unquantized:
            yield product.name or "", x, product.outputs[0]


@pytest.mark.parametrize(("target", "kind"), [(CANONICAL, "MatMul"), (CPU, "MatMulNBits")])
def test_each_layer_is_its_emulation(
    int4: Artifact, probe: Probe, make_batch: MakeBatch, target: str, kind: str
) -> None:
    graph = ir.load(int4.graph(target))
    layers, read = list(layers_of(graph.graph, kind)), stored_model(int4).read
    assert len(layers) == 3 * 6
    values = [value for _, *both in layers for value in both]
    probed = probe(int4, graph, values, make_batch(1, 33, 2, 64))
    for module, x, y in layers:
        rounded = FORMAT.fake_quantize_input(probed[x]) if target == CPU else probed[x]
        # only the order of sums differs
        assert relative(probed[y], rounded @ read(f"{module}.weight").T) <= 5e-6, module


# -- from end to end --


@pytest.fixture(scope="module")
def batches(make_batch: MakeBatch) -> list[TokenBatch]:
    return [make_batch(*range(3, 60), seed=seed) for seed in range(3)]


def test_lowered_graph_is_as_far_from_the_reference_as_its_emulation(
    int4: Artifact, uneven: Path, run_graph: RunGraph, batches: list[TokenBatch]
) -> None:
    emulation, reference = open_backend(int4), open_reference(uneven).backend
    losses: dict[str, list[np.ndarray]] = {"emulated": [], "artifact": []}
    for batch in batches:
        truth = reference.run(batch).astype(np.float64)
        losses["emulated"].append(1 - (emulation.run(batch) * truth).sum(axis=1))
        losses["artifact"].append(1 - (run_graph(int4, CPU, batch) * truth).sum(axis=1))
    emulated, artifact_loss = (
        np.concatenate(losses[name]).mean() for name in ("emulated", "artifact")
    )
    # codes that round otherwise, by sums in another order, move single texts, not the mean
    assert artifact_loss == pytest.approx(emulated, rel=0.05)
    assert artifact_loss > 0.001


@pytest.mark.parametrize("target", [CANONICAL, CPU])
def test_vector_is_the_same_alone_in_a_batch_and_in_any_order(
    int4: Artifact, run_graph: RunGraph, batches: list[TokenBatch], target: str
) -> None:
    batch = batches[0]
    together = run_graph(int4, target, batch).astype(np.float64)
    order = np.random.default_rng(0).permutation(len(batch.lengths))
    turned = run_graph(int4, target, TokenBatch(batch.ids[order], batch.lengths[order]))
    alone = np.stack(
        [
            run_graph(int4, target, TokenBatch(batch.ids[[row], :length], batch.lengths[[row]]))[0]
            for row, length in enumerate(batch.lengths)
        ]
    )
    assert (alone * together).sum(axis=1).min() >= 0.9999
    assert (turned * together[order]).sum(axis=1).min() >= 0.9999
