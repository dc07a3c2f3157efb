"""fp8 computes what its emulation does, layer by layer and from end to end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from anna_export.artifact.folder import Artifact
from anna_export.backends import open_encoder
from anna_export.calibrate.layerwise import LayerwiseForward
from anna_export.calibrate.sensitivity import measure_loss
from anna_export.graph.names import CANONICAL, CPU
from anna_export.graph.tensors import IR_DTYPES
from anna_export.quantise.calibration import Calibration, read_calibration
from anna_export.quantise.fp8 import Fp8Static
from anna_export.reference.load import open_reference
from anna_export.spec import Precision
from anna_export.text.batch import TokenBatch
from anna_export.weights.checkpoint import Checkpoint
from tests.support.types import Fp8, MakeBatch, Probe, RunGraph

HIGH_PRECISIONS = tuple(IR_DTYPES)


def calibration_of(artifact: Artifact) -> Calibration:
    calibration = read_calibration(artifact)
    assert calibration is not None and not calibration.unquantized
    return calibration


# -- layer by layer --


@dataclass(frozen=True, slots=True)
class Layer:
    """What a quantised layer had and gave when its graph ran."""

    module: str
    input: torch.Tensor  # (B, S, in), before it is rounded
    weight: torch.Tensor  # (in, out), as it is restored
    output: torch.Tensor


def layers_of(graph: ir.Graph) -> Iterator[tuple[str, list[ir.Value]]]:
    """Yield each quantised module's name, and its input, restored weight and output."""
    for product in graph:
        if product.op_type == "MatMul":
            rounded, weight = product.inputs
            assert product.name and rounded is not None and weight is not None
            dequantize = rounded.producer()
            assert dequantize is not None and dequantize.inputs[0] is not None
            quantize = dequantize.inputs[0].producer()
            assert quantize is not None and quantize.inputs[0] is not None
            yield product.name, [quantize.inputs[0], weight, product.outputs[0]]


def run_probed(probe: Probe, artifact: Artifact, target: str, batch: TokenBatch) -> list[Layer]:
    """Run a graph with every layer's values as outputs."""
    model = ir.load(artifact.graph(target))
    layers = dict(layers_of(model.graph))
    quantised = artifact.manifest.quantised
    assert quantised is not None and len(layers) == 3 * 7
    values = [value for three in layers.values() for value in three]
    dtype = IR_DTYPES[quantised.compute_dtype if target == CANONICAL else Precision.FP32]
    probed = probe(artifact, model, values, batch, dtype)
    return [Layer(name, *(probed[v] for v in values)) for name, values in layers.items()]


@pytest.fixture(scope="module")
def compare(
    fp8: Fp8, sharp: Path, probe: Probe, make_batch: MakeBatch
) -> Callable[[Precision, str], dict[str, float]]:
    """Each layer's distance, relative to its largest output, from its emulation on its input."""
    checkpoint = Checkpoint.open(sharp)
    names = checkpoint.spec.linear_modules()

    def compare(high_precision: Precision, target: str) -> dict[str, float]:
        artifact, linear = fp8(high_precision), Fp8Static(high_precision)
        inputs = calibration_of(artifact).inputs
        distances = {}
        for layer in run_probed(probe, artifact, target, make_batch(1, 33, 2, 64)):
            weight = checkpoint.read(f"{layer.module}.weight", torch.float32)
            dequantized = linear.dequantize(linear.quantize(weight))
            assert torch.equal(layer.weight, dequantized.T.to(layer.weight.dtype)), layer.module
            truth = (
                linear.fake_quantize_input(layer.input.float(), inputs[names[layer.module]])
                @ dequantized.T
            )
            off = (layer.output.float() - truth).abs().max() / truth.abs().max()
            distances[layer.module] = float(off)
        return distances

    return compare


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_each_layer_of_the_fallback_graph_is_its_emulation(
    compare: Callable[[Precision, str], dict[str, float]], high_precision: Precision
) -> None:
    # inputs and weights are equal bit by bit: only the order of sums differs
    assert max(compare(high_precision, CPU).values()) <= 1e-5


def test_each_layer_computed_in_fp16_is_close_to_its_emulation(
    compare: Callable[[Precision, str], dict[str, float]],
) -> None:
    # weights and sums are rounded to fp16; one input that rounded otherwise, as it would if divided
    # in fp16, is 1e-2 and more
    assert 1e-5 < max(compare(Precision.FP16, CANONICAL).values()) <= 2e-3


# -- from end to end --


@pytest.fixture(scope="module")
def batches(make_batch: MakeBatch) -> list[TokenBatch]:
    return [make_batch(*range(3, 60), seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def truths(sharp: Path, batches: list[TokenBatch]) -> list[np.ndarray]:
    reference = open_reference(sharp).backend
    return [reference.run(batch).astype(np.float64) for batch in batches]


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_fallback_graph_is_no_farther_from_the_reference_than_the_emulation(
    fp8: Fp8,
    sharp: Path,
    run_graph: RunGraph,
    batches: list[TokenBatch],
    truths: list[np.ndarray],
    high_precision: Precision,
) -> None:
    artifact = fp8(high_precision)
    forward, linear = LayerwiseForward(Checkpoint.open(sharp)), Fp8Static(high_precision)
    emulated = measure_loss(forward, linear, calibration_of(artifact).inputs, {}, batches)
    vectors = [run_graph(artifact, CPU, batch) for batch in batches]
    cosines = [(a * b).sum(axis=1) for a, b in zip(vectors, truths, strict=True)]
    loss = 1 - np.concatenate(cosines).mean()
    assert loss <= 1.1 * emulated
    # without this, a graph that quantises nothing would pass
    assert loss >= 0.9 * emulated > 0.001


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_emulation_of_the_stored_numbers_gives_the_fallbacks_vectors_but_for_rounding_flips(
    fp8: Fp8, run_graph: RunGraph, batches: list[TokenBatch], high_precision: Precision
) -> None:
    artifact = fp8(high_precision)
    emulated = open_encoder(artifact.folder, backend="pytorch").backend
    off = [
        1 - (run_graph(artifact, CPU, batch).astype(np.float64) * emulated.run(batch)).sum(axis=1)
        for batch in batches
    ]
    # one value that rounds to the other neighbour moves its text's vector by 1e-3, and no other
    assert np.quantile(np.concatenate(off), 0.9) <= 1e-6


@pytest.mark.parametrize("high_precision", HIGH_PRECISIONS)
def test_vector_is_the_same_alone_and_in_a_batch(
    fp8: Fp8, run_graph: RunGraph, batches: list[TokenBatch], high_precision: Precision
) -> None:
    artifact, batch = fp8(high_precision), batches[0]
    together = run_graph(artifact, CPU, batch).astype(np.float64)
    alone = [
        run_graph(artifact, CPU, TokenBatch(batch.ids[[row], :length], batch.lengths[[row]]))[0]
        for row, length in enumerate(batch.lengths)
    ]
    cosines = (np.stack(alone) * together).sum(axis=1)
    assert cosines.min() >= 0.9999
