"""fp8 in TensorRT-RTX, which builds real engines without a GPU; skipped where it is not installed.

pip install anna-export[rtx]
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from anna_export.artifact import Artifact
from anna_export.graph.builder import ATTENTION_MASK, INPUT_IDS, PREFIX_KEYS, PREFIX_VALUES
from anna_export.quantise.scheme import CANONICAL
from anna_export.spec import LINEAR_INPUTS, Precision

trt: Any = pytest.importorskip("tensorrt_rtx")

MakeModel = Callable[..., Path]
MakeArtifact = Callable[..., Artifact]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Path:
    """A model whose heads are of a size that fused attention takes."""
    return make_model(
        num_hidden_layers=2,
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        initializer_range=0.1,
    )


class Log(trt.ILogger):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        self.messages.append(message)


def with_a_prefix_to_give(artifact: Artifact) -> Path:
    """Write the graph without defaults of inputs, which TensorRT takes for constants."""
    model = ir.load(artifact.graph(CANONICAL))
    for name in (PREFIX_KEYS, PREFIX_VALUES):
        model.graph.initializers.pop(name)
    path = artifact.folder / "rtx.onnx"
    ir.save(model, path)
    return path


def build(artifact: Artifact, capability: Any) -> tuple[Any, list[str]]:
    """Build the canonical graph for a GPU; return the plan and its layers, each in one line."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    graph = with_a_prefix_to_give(artifact)
    assert parser.parse_from_file(str(graph)), log.messages
    assert {network.get_input(index).name for index in range(network.num_inputs)} == {
        INPUT_IDS,
        ATTENTION_MASK,
        PREFIX_KEYS,
        PREFIX_VALUES,
    }
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)
    profile = builder.create_optimization_profile()
    for name in (INPUT_IDS, ATTENTION_MASK):
        profile.set_shape(name, (1, 1), (7, 33), (8, 64))
    for name in (PREFIX_KEYS, PREFIX_VALUES):
        profile.set_shape(name, *((2, 2, tokens, 64) for tokens in (0, 128, 192)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    tables = [message for message in log.messages if message.startswith("Layers:")]
    return plan, [row for table in tables for row in table.splitlines() if "LayerType" in row]


@pytest.mark.parametrize("arithmetic", [Precision.BF16, Precision.FP16])
def test_engine_multiplies_in_fp8_merges_layers_of_one_input_and_fuses_attention(
    model: Path, make_artifact: MakeArtifact, arithmetic: Precision
) -> None:
    artifact = make_artifact(
        model, Precision.FP8, max_tokens=256, high_precision=arithmetic, max_loss=1
    )
    plan, layers = build(artifact, trt.ComputeCapability.SM89)
    assert plan is not None
    products = [row for row in layers if "LayerType: gemm" in row]
    names = [re.findall(r"layers\.\d+\.\w+\.\w+_proj", row.split(",")[0]) for row in products]
    query, *others = LINEAR_INPUTS["attention_input"]
    expected = [
        *(("layers.0.", modules) for modules in LINEAR_INPUTS.values()),
        *(("layers.1.", modules) for modules in list(LINEAR_INPUTS.values())[1:]),
        # the last layer's query is that of the last token alone
        ("layers.1.", [query]),
        ("layers.1.", others),
    ]
    assert sorted(map(sorted, names)) == sorted(
        sorted(prefix + module for module in modules) for prefix, modules in expected
    )
    for row in products:
        inputs = row.partition("Inputs: ")[2].partition("Outputs: ")[0]
        # tokens and weight
        assert inputs.count("Datatype: FP8") == 2, row
    assert sum("LayerType: kgen" in row and "_gemm_mha_v2" in row for row in layers) == 1


def test_gpu_without_fp8_gets_no_engine(model: Path, make_artifact: MakeArtifact) -> None:
    artifact = make_artifact(
        model, Precision.FP8, max_tokens=256, high_precision=Precision.BF16, max_loss=1
    )
    plan, _ = build(artifact, trt.ComputeCapability.SM80)
    assert plan is None
