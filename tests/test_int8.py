"""int8: the graphs compute what the emulation says, from weights that are stored once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anna_export.artifact import Artifact
from anna_export.backends.stored import stored_model
from anna_export.checkpoint import Checkpoint
from anna_export.data_file import DATA_FILE
from anna_export.graph import pooling
from anna_export.graph.builder import ATTENTION_MASK, INPUT_IDS
from anna_export.graph.passes.matmul_integer import MatMulIntegerToFloat
from anna_export.quantise.embedding import Int8PerRow, QuantiseEmbedding
from anna_export.quantise.int8 import Int8PerToken
from anna_export.quantise.scheme import CANONICAL, CPU
from anna_export.spec import EMBEDDING_WEIGHT, LINEAR_INPUTS, Precision
from anna_export.tokenise import TokenBatch

MakeModel = Callable[..., Path]
MakeAdapter = Callable[..., Path]
MakeArtifact = Callable[..., Artifact]
MakeBatch = Callable[..., TokenBatch]
RunGraph = Callable[[Artifact, str, TokenBatch], np.ndarray]
FAST = settings(max_examples=40, derandomize=True, deadline=None)
FORMAT, TABLE = Int8PerToken(), Int8PerRow()
LAYERS = 3


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Path:
    return make_model(initializer_range=0.2)


@pytest.fixture(scope="module")
def adapter(model: Path, make_adapter: MakeAdapter) -> Path:
    return make_adapter(model)


@pytest.fixture(scope="module")
def int8(model: Path, adapter: Path, make_artifact: MakeArtifact) -> Artifact:
    return make_artifact(model, Precision.INT8, adapter, max_loss=1)


@pytest.fixture(scope="module")
def checkpoint(model: Path, adapter: Path) -> Checkpoint:
    return Checkpoint.open(model, adapter)


@pytest.fixture(scope="module")
def graphs(int8: Artifact) -> dict[str, ir.Model]:
    return {target: ir.load(int8.graph(target)) for target in (CANONICAL, CPU)}


def nodes(model: ir.Model, kind: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == kind]


def draw(seed: int, rows: int, columns: int) -> torch.Tensor:
    """Draw values with heavy tails, of rows whose sizes are orders apart."""
    torch.manual_seed(seed)
    sizes = 10 ** torch.randint(-6, 4, (rows, 1)).float()
    return torch.randn(rows, columns) / torch.rand(rows, columns) * sizes


# -- the format --


@FAST
@given(seed=st.integers(0, 9999), outputs=st.integers(1, 9), inputs=st.integers(1, 23))
def test_weight_is_rounded_to_the_nearest_of_its_outputs_steps(
    seed: int, outputs: int, inputs: int
) -> None:
    weight = draw(seed, outputs, inputs)
    stored = FORMAT.store(weight)
    assert stored[""].abs().amax(dim=0).tolist() == [127] * outputs
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    # half a step, and the rounding of fp32 itself
    assert ((FORMAT.restore(stored) - weight).abs() <= 0.50001 * step).all()


@FAST
@given(seed=st.integers(0, 9999), tokens=st.integers(1, 9), inputs=st.integers(1, 23))
def test_input_is_rounded_to_the_nearest_of_its_tokens_steps(
    seed: int, tokens: int, inputs: int
) -> None:
    x = draw(seed, tokens, inputs)
    found, step = FORMAT.round_input(x), x.abs().amax(dim=1, keepdim=True) / 127
    assert ((found - x).abs() <= 0.50001 * step).all()  # as above
    codes = found / step
    # a step has 7 bits, what is stored of it 24
    assert (codes - codes.round()).abs().max() <= 1e-4
    for row in range(tokens):
        assert torch.equal(FORMAT.round_input(x[row]), found[row])


@FAST
@given(seed=st.integers(0, 9999), tokens=st.integers(1, 9))
def test_embedding_is_restored_within_half_a_step_of_its_row(seed: int, tokens: int) -> None:
    table = draw(seed, tokens, 40)
    step = table.abs().amax(dim=1, keepdim=True) / 127
    assert ((TABLE.restore(TABLE.store(table)) - table).abs() <= 0.50001 * step).all()  # as above


def test_row_of_zeros_stays_zero() -> None:
    x = draw(0, 3, 23)
    x[1] = 0
    for found in (
        FORMAT.round_input(x),
        FORMAT.restore(FORMAT.store(x)),
        TABLE.restore(TABLE.store(x)),
    ):
        assert torch.isfinite(found).all() and (found[1] == 0).all()
        assert found[0].any() and found[2].any()


def test_layout_is_what_is_stored(checkpoint: Checkpoint) -> None:
    types = {torch.int8: ir.DataType.INT8, torch.float32: ir.DataType.FLOAT}
    for stored, layout in (
        (FORMAT.store(draw(0, 5, 23)), FORMAT.layout(5, 23)),
        (TABLE.store(draw(0, 5, 23)), TABLE.layout(5, 23)),
    ):
        found = {name: (types[t.dtype], tuple(t.shape)) for name, t in stored.items()}
        assert found == layout


# -- the graphs --


def test_canonical_graph_has_standard_operators_alone(graphs: dict[str, ir.Model]) -> None:
    assert {node.domain for node in graphs[CANONICAL].graph} == {"", pooling.DOMAIN}
    assert {node.domain for f in graphs[CANONICAL].functions.values() for node in f} == {""}


def test_every_linear_layer_is_an_integer_product(
    graphs: dict[str, ir.Model], checkpoint: Checkpoint
) -> None:
    modules = {f"{name}.weight" for name in checkpoint.spec.linear_modules()}
    for target, kind in ((CANONICAL, "MatMulInteger"), (CPU, "MatMulIntegerToFloat")):
        found = [node.inputs[1] for node in nodes(graphs[target], kind)]
        assert sorted(value.name or "" for value in found if value is not None) == sorted(modules)
        assert {value.dtype for value in found if value is not None} == {ir.DataType.INT8}
        assert not nodes(graphs[target], "MatMul")
    assert not nodes(graphs[CPU], "MatMulInteger")


@pytest.mark.parametrize("target", [CANONICAL, CPU])
def test_layers_that_share_an_input_share_its_rounding(
    graphs: dict[str, ir.Model], target: str
) -> None:
    sharing: dict[ir.Value | None, set[str]] = {}
    for node in graphs[target].graph:
        if node.op_type.startswith("MatMulInteger") and node.inputs[1] is not None:
            name = (node.inputs[1].name or "").removesuffix(".weight")
            sharing.setdefault(node.inputs[0], set()).add(name)
    expected = [
        {f"layers.{layer}.{module}" for module in modules}
        for layer in range(LAYERS - 1)
        for modules in LINEAR_INPUTS.values()
    ]
    # in the last layer, the query is computed for the last token alone
    query, *others = LINEAR_INPUTS["attention_input"]
    last = [{query}, set(others), *map(set, list(LINEAR_INPUTS.values())[1:])]
    expected += [{f"layers.{LAYERS - 1}.{module}" for module in modules} for modules in last]
    assert sorted(map(sorted, sharing.values())) == sorted(map(sorted, expected))
    assert len(nodes(graphs[target], "QuantizeLinear")) == len(expected)


def test_embedding_is_looked_up_before_it_is_widened(graphs: dict[str, ir.Model]) -> None:
    for graph in graphs.values():
        table = graph.graph.initializers[EMBEDDING_WEIGHT]
        assert table.dtype is ir.DataType.INT8
        assert [use.node.op_type for use in table.uses()] == ["Gather"]


def test_weights_are_stored_once_for_both_graphs(
    int8: Artifact, graphs: dict[str, ir.Model], checkpoint: Checkpoint
) -> None:
    modules = checkpoint.spec.linear_modules()
    places: list[dict[str, tuple[object, int | None]]] = []
    for graph in graphs.values():
        tensors = {name: value.const_value for name, value in graph.graph.initializers.items()}
        places.append(
            {
                name: (tensor.location, tensor.offset)
                for name, tensor in tensors.items()
                if isinstance(tensor, ir.ExternalTensor)
            }
        )
    assert places[0] == places[1]
    assert places[0].keys() >= {EMBEDDING_WEIGHT, *(f"{name}.weight" for name in modules)}
    stored = 0
    for name, shape in checkpoint.spec.weight_shapes().items():
        # a byte a number, four for each output's scale; norms are fp32
        quantised = name == EMBEDDING_WEIGHT or name.removesuffix(".weight") in modules
        stored += int(np.prod(shape)) + 4 * shape[0] if quantised else 4 * shape[0]
    stored += 64 * 16 * 4  # cosines and sines
    size = (int8.folder / DATA_FILE).stat().st_size
    # each begins on a page; the smallest lie in the graphs
    assert 0.99 * stored < size < stored + 4096 * len(places[0])


@pytest.mark.parametrize("kind", ["a scale a token", "a constant that is no vector"])
def test_scale_that_is_not_one_an_output_is_left_to_be_multiplied(
    int8: Artifact, kind: str
) -> None:
    model = ir.load(int8.graph(CANONICAL))
    product = nodes(model, "MatMulInteger")[0]
    (cast,) = (use.node for use in product.outputs[0].uses())
    (scaled,) = (use.node for use in cast.outputs[0].uses())
    (last,) = (use.node for use in scaled.outputs[0].uses())
    other = last.inputs[1]
    if kind != "a scale a token":
        other = ir.val("matrix", const_value=ir.tensor(np.ones((1, 1), np.float32), name="matrix"))
        model.graph.register_initializer(other)
    scaled.replace_input_with(1, other)
    MatMulIntegerToFloat()(model)
    assert nodes(model, "MatMulInteger") == [product]
    assert len(nodes(model, "MatMulIntegerToFloat")) == 7 * LAYERS - 1


def test_pass_applied_twice_changes_nothing(int8: Artifact) -> None:
    model = ir.load(int8.graph(CANONICAL))
    assert MatMulIntegerToFloat()(model).modified
    assert not MatMulIntegerToFloat()(model).modified


def test_table_that_is_quantised_already_is_refused(
    graphs: dict[str, ir.Model], checkpoint: Checkpoint
) -> None:
    with pytest.raises(ir.passes.PreconditionError, match=r"fp32 embed_tokens\.weight"):
        QuantiseEmbedding(TABLE, checkpoint)(graphs[CANONICAL])


# -- arithmetic, layer by layer --


def run_probed(
    artifact: Artifact, model: ir.Model, values: list[ir.Value], batch: TokenBatch
) -> list[torch.Tensor]:
    """Run a graph with these values as outputs."""
    for value in values:
        value.dtype = ir.DataType.FLOAT
    model.graph.outputs.extend(dict.fromkeys(values))
    # beside the weights, and gone before anything counts the artifact's files
    path = artifact.folder / "probed.onnx"
    try:
        ir.save(model, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    finally:
        path.unlink()
    feeds = {INPUT_IDS: batch.ids, ATTENTION_MASK: batch.mask}
    found = dict(zip(values, session.run([v.name for v in values], feeds), strict=True))
    return [torch.from_numpy(found[value]) for value in values]


def input_of(module: ir.Node) -> ir.Value:
    """Return what a layer of the canonical graph reads, before it is rounded."""
    value = module.inputs[0]
    for kind in ("Mul", "Cast", "MatMulInteger", "Reshape", "QuantizeLinear", "Reshape"):
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
    int8: Artifact, checkpoint: Checkpoint, batch: TokenBatch
) -> None:
    model = ir.load(int8.graph(CANONICAL))
    named = {node.name: node for node in model.graph}
    modules = [named[name] for name in checkpoint.spec.linear_modules()]
    values = [value for node in modules for value in (input_of(node), node.outputs[0])]
    found = run_probed(int8, model, values, batch)
    for node, x, output in zip(modules, found[::2], found[1::2], strict=True):
        weight = checkpoint.read(f"{node.name}.weight", torch.float32)
        truth = FORMAT.round_input(x) @ FORMAT.restore(FORMAT.store(weight)).T
        # the integers are the same: only the order of sums and the last bit of a scale differ
        assert (output - truth).abs().max() <= 1e-5 * truth.abs().max(), node.name
        plain = (output - x @ weight.T).abs().max() / truth.abs().max()
        assert plain > 1e-3, node.name  # nor is it unquantised


def test_each_layer_of_the_cpu_graph_is_that_of_the_canonical_graph(
    int8: Artifact, checkpoint: Checkpoint, batch: TokenBatch
) -> None:
    outputs: list[dict[str, torch.Tensor]] = []
    for target in (CANONICAL, CPU):
        model = ir.load(int8.graph(target))
        values = {
            node.name: node.outputs[0]
            for node in model.graph
            if node.name in checkpoint.spec.linear_modules() and node.op_type == "Mul"
        }
        found = run_probed(int8, model, list(values.values()), batch)
        outputs.append({name or "": x for name, x in zip(values, found, strict=True)})
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
            weight = TABLE.restore(TABLE.store(weight))
        elif isinstance(module, torch.nn.Linear):
            weight = FORMAT.restore(FORMAT.store(weight))
            module.register_forward_pre_hook(lambda _, inputs: FORMAT.round_input(inputs[0]))
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
        found = run_graph(artifact, target, batch)
        assert np.isfinite(found).all()
        # a zero vector has no direction, and stays what it is
        assert (found[0] == 0).all() and np.linalg.norm(found[1]) == pytest.approx(1, abs=1e-6)


def test_stored_numbers_are_those_of_the_format(int8: Artifact, checkpoint: Checkpoint) -> None:
    read = stored_model(int8).read
    for name in checkpoint.spec.weight_shapes():
        weight = checkpoint.read(name, torch.float32)
        if name == EMBEDDING_WEIGHT:
            weight = TABLE.restore(TABLE.store(weight))
        elif weight.ndim == 2:
            weight = FORMAT.restore(FORMAT.store(weight))
        assert torch.equal(read(name), weight), name
