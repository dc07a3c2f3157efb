"""int8 computes what its emulation does, layer by layer and from end to end."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from anna_export.artifact.folder import Artifact
from anna_export.graph.names import CANONICAL, CPU
from anna_export.quantise.embedding import Int8PerRow
from anna_export.quantise.int8 import Int8PerToken
from anna_export.reference.stored import stored_model
from anna_export.spec import EMBEDDING_WEIGHT, Precision
from anna_export.text.batch import TokenBatch
from anna_export.weights.checkpoint import Checkpoint
from tests.support.types import MakeArtifact, MakeBatch, MakeModel, Probe, RunGraph

FORMAT, TABLE = Int8PerToken(), Int8PerRow()


@pytest.fixture(scope="module")
def checkpoint(sharp: Path, sharp_adapter: Path) -> Checkpoint:
    return Checkpoint.open(sharp, sharp_adapter)


# -- layer by layer --


def input_of(module: ir.Node) -> ir.Value:
    """Return what a layer of the canonical graph reads, before it is rounded."""
    value = module.inputs[0]
    for kind in ("Mul", "Cast", "MatMulInteger", "QuantizeLinear"):
        assert value is not None
        node = value.producer()
        assert node is not None and node.op_type == kind, node
        value = node.inputs[0]
    assert value is not None
    return value


@pytest.fixture(scope="module")
def batch(make_batch: MakeBatch) -> TokenBatch:
    return make_batch(1, 33, 2, 64)


def test_each_layer_is_its_emulation(
    int8: Artifact, checkpoint: Checkpoint, probe: Probe, batch: TokenBatch
) -> None:
    model = ir.load(int8.graph(CANONICAL))
    named = {node.name: node for node in model.graph}
    modules = [named[name] for name in checkpoint.spec.linear_modules()]
    values = [value for node in modules for value in (input_of(node), node.outputs[0])]
    probed = probe(int8, model, values, batch)
    for node in modules:
        x, output = probed[input_of(node)], probed[node.outputs[0]]
        weight = checkpoint.read(f"{node.name}.weight", torch.float32)
        truth = FORMAT.fake_quantize_input(x) @ FORMAT.dequantize(FORMAT.quantize(weight)).T
        # the integers are the same: only the order of sums and the last bit of a scale differ
        assert (output - truth).abs().max() <= 1e-5 * truth.abs().max(), node.name
        plain = (output - x @ weight.T).abs().max() / truth.abs().max()
        assert plain > 1e-3, node.name  # nor is it unquantised


def test_each_layer_of_the_cpu_graph_is_that_of_the_canonical_graph(
    int8: Artifact, checkpoint: Checkpoint, probe: Probe, batch: TokenBatch
) -> None:
    outputs: list[dict[str, torch.Tensor]] = []
    for target in (CANONICAL, CPU):
        model = ir.load(int8.graph(target))
        values = {
            node.name: node.outputs[0]
            for node in model.graph
            if node.name in checkpoint.spec.linear_modules() and node.op_type == "Mul"
        }
        probed = probe(int8, model, values.values(), batch)
        outputs.append({name or "": probed[value] for name, value in values.items()})
    # a pass may have moved the last factor of an up_proj elsewhere
    assert outputs[1].keys() >= {name for name in outputs[0] if "up_proj" not in name}
    real = torch.from_numpy(batch.mask).bool()
    for name, output in outputs[1].items():
        truth = outputs[0][name]
        if output.shape[1] == batch.width:
            output, truth = output[real], truth[real]
        # a sum in another order turns the odd rounding over, by a step of 1/127 of the largest
        assert (output - truth).norm() <= 1e-3 * truth.norm(), name


# -- from end to end --


@pytest.fixture(scope="module")
def emulated(int8: Artifact, checkpoint: Checkpoint) -> Callable[[TokenBatch], np.ndarray]:
    """The vectors of transformers' model over what the format makes of weights and inputs."""
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    for name in checkpoint.spec.weight_shapes():
        weight = checkpoint.read(name, torch.float32)
        module = theirs.get_submodule(name.removesuffix(".weight"))
        if name == EMBEDDING_WEIGHT:
            weight = TABLE.dequantize(TABLE.quantize(weight))
        elif isinstance(module, torch.nn.Linear):
            weight = FORMAT.dequantize(FORMAT.quantize(weight))
            module.register_forward_pre_hook(
                lambda _, inputs: FORMAT.fake_quantize_input(inputs[0])
            )
        module.weight = torch.nn.Parameter(weight, requires_grad=False)

    def run(batch: TokenBatch) -> np.ndarray:
        with torch.inference_mode():
            hidden = theirs(torch.from_numpy(batch.ids)).last_hidden_state
        last = hidden[torch.arange(len(batch.lengths)), torch.from_numpy(batch.lengths) - 1]
        return torch.nn.functional.normalize(last, dim=-1).double().numpy()

    return run


@pytest.mark.parametrize("target", [CANONICAL, CPU])
def test_vectors_are_those_of_the_emulation(
    int8: Artifact,
    emulated: Callable[[TokenBatch], np.ndarray],
    run_graph: RunGraph,
    make_batch: MakeBatch,
    target: str,
) -> None:
    batch = make_batch(*range(1, 64, 2))
    cosines = (run_graph(int8, target, batch) * emulated(batch)).sum(axis=1)
    # the odd rounding that turns over moves a vector of so small a model by 1e-4; most have none
    assert 1 - cosines.min() <= 1e-3 and 1 - np.median(cosines) <= 1e-6


@pytest.mark.parametrize("target", [CANONICAL, CPU])
def test_vector_is_the_same_alone_in_any_order_and_behind_any_padding(
    int8: Artifact, run_graph: RunGraph, make_batch: MakeBatch, target: str
) -> None:
    batch = make_batch(*range(1, 60, 3))
    together = run_graph(int8, target, batch)
    order = np.random.default_rng(1).permutation(len(batch.ids))
    padded = np.pad(batch.ids[order], [(0, 0), (0, 5)], constant_values=31999)
    mixed = run_graph(int8, target, TokenBatch(padded, batch.lengths[order]))
    for row, length in enumerate(batch.lengths):
        alone = run_graph(int8, target, TokenBatch(batch.ids[[row], :length], batch.lengths[[row]]))
        # integer sums are exact in any order, and attention's differ in the last bits
        np.testing.assert_allclose(together[row], alone[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(mixed[list(order).index(row)], alone[0], rtol=0, atol=1e-6)


def test_token_of_zeros_gives_a_finite_vector(
    make_model: MakeModel, make_artifact: MakeArtifact, run_graph: RunGraph, make_batch: MakeBatch
) -> None:
    from safetensors.torch import load_file, save_file

    model = make_model(initializer_range=0.2, seed=3)
    weights = load_file(model / "model.safetensors")
    batch = make_batch(5, 5)
    weights[EMBEDDING_WEIGHT][batch.ids[0]] = (
        0  # a whole text of them: every input of layer 0 is zero
    )
    weights["layers.1.self_attn.v_proj.weight"].zero_()
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    artifact = make_artifact(model, Precision.INT8, max_loss=1)
    for target in (CANONICAL, CPU):
        vectors = run_graph(artifact, target, batch)
        assert np.isfinite(vectors).all()
        # a zero vector has no direction, and stays what it is
        assert (vectors[0] == 0).all() and np.linalg.norm(vectors[1]) == pytest.approx(1, abs=1e-6)


def test_stored_numbers_are_those_of_the_format(int8: Artifact, checkpoint: Checkpoint) -> None:
    read = stored_model(int8).read
    for name in checkpoint.spec.weight_shapes():
        weight = checkpoint.read(name, torch.float32)
        if name == EMBEDDING_WEIGHT:
            weight = TABLE.dequantize(TABLE.quantize(weight))
        elif weight.ndim == 2:
            weight = FORMAT.dequantize(FORMAT.quantize(weight))
        assert torch.equal(read(name), weight), name
