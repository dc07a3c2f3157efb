"""The graph that TensorRT is given computes what the artifact's own does."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from anna_export.artifact.folder import Artifact
from anna_export.engines.build import gpu_form
from anna_export.engines.compatibility import require_compatible
from anna_export.errors import DamagedError
from anna_export.graph import attention
from anna_export.graph.names import CANONICAL, CPU
from anna_export.graph.passes.compute_in_fp32 import ComputeInFp32
from anna_export.graph.passes.gpu_attention import InputsToGive, WithoutPrefix
from anna_export.graph.passes.merge_linear import MergeLinear
from anna_export.spec import Precision
from tests.support.types import MakeArtifact, MakeModel

PREFIX_TOKENS = 5


def run(model: ir.Model, folder: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    ir.save(model, folder / "form.onnx", external_data="form.data")
    session = onnxruntime.InferenceSession(
        str(folder / "form.onnx"), providers=["CPUExecutionProvider"]
    )
    (vectors,) = session.run(None, feeds)
    return vectors


def inputs(artifact: Artifact, prefix: int) -> dict[str, np.ndarray]:
    random, spec = np.random.default_rng(0), artifact.manifest.spec
    ids = random.integers(3, spec.vocab_size, (4, 9))
    lengths = np.array([9, 1, 4, 7])
    feeds = {"input_ids": ids, "attention_mask": (np.arange(9) < lengths[:, None]).astype(np.int64)}
    if prefix:
        shape = (spec.layers, spec.kv_heads, prefix, spec.head_dim)
        for name in ("prefix_keys", "prefix_values"):
            feeds[name] = random.standard_normal(shape).astype(np.float32)
    return feeds


def own_vectors(artifact: Artifact, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        str(artifact.graph(CPU)), providers=["CPUExecutionProvider"]
    )
    (vectors,) = session.run(None, feeds)
    return vectors


@pytest.mark.parametrize("window", [None, 4], ids=["whole", "window"])
@pytest.mark.parametrize("prefix", [0, PREFIX_TOKENS])
def test_form_gives_the_artifacts_vectors(
    make_model: MakeModel, make_artifact: MakeArtifact, tmp_path: Path, prefix: int, window: Any
) -> None:
    artifact = make_artifact(make_model(sliding_window=window), Precision.FP32)
    model = ir.load(artifact.graph(CANONICAL))
    (InputsToGive() if prefix else WithoutPrefix())(model)
    MergeLinear()(model)
    feeds = inputs(artifact, prefix)
    vectors = run(model, tmp_path, feeds)
    # a joined product sums in the same order; attention does not
    np.testing.assert_allclose(vectors, own_vectors(artifact, feeds), atol=1e-6, rtol=0)


def test_joined_fp8_products_give_the_artifacts_vectors(
    make_model: MakeModel, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    artifact = make_artifact(make_model(), Precision.FP8, high_precision=Precision.BF16, max_loss=1)
    model = gpu_form(artifact)
    joined = [node for node in model.graph if node.op_type == "MatMul" and "+" in (node.name or "")]
    assert len(joined) == 2 * artifact.manifest.spec.layers
    ComputeInFp32()(model)
    feeds = inputs(artifact, 0)
    # roundings to E4M3 amplify what attention rounds otherwise: compare directions
    cosines = (run(model, tmp_path, feeds) * own_vectors(artifact, feeds)).sum(1)
    assert cosines.min() > 0.999


def test_without_a_prefix_attention_is_bare_but_for_the_last_layers_one_query(
    make_model: MakeModel, make_artifact: MakeArtifact
) -> None:
    artifact = make_artifact(make_model(sliding_window=None), Precision.BF16)
    model = gpu_form(artifact)
    nodes = [node for node in model.graph if node.op_type == "Attention"]
    *bare, last = nodes
    assert len(nodes) == artifact.manifest.spec.layers
    assert all(len(node.inputs) == 3 and node.attributes["is_causal"].as_int() for node in bare)
    assert len(last.inputs) == 4 and not last.attributes["is_causal"].as_int()
    assert [value.name for value in model.graph.inputs] == ["input_ids", "attention_mask"]
    assert not any(key[1] == attention.NAME for key in model.functions)


def test_products_of_one_input_are_joined_and_their_parts_gone(
    make_model: MakeModel, make_artifact: MakeArtifact
) -> None:
    artifact = make_artifact(make_model(), Precision.BF16)
    model = gpu_form(artifact)
    names = [node.name for node in model.graph if node.op_type == "MatMul"]
    layer = "layers.0.self_attn."
    assert f"{layer}q_proj+{layer}k_proj+{layer}v_proj" in names
    last = f"layers.{artifact.manifest.spec.layers - 1}.self_attn."
    # the last layer's query is that of one token
    assert f"{last}q_proj" in names and f"{last}k_proj+{last}v_proj" in names
    weights = {name for name in model.graph.initializers if name.endswith("q_proj.weight")}
    assert weights == {f"{last}q_proj.weight"}


def test_scale_of_another_type_is_refused_with_its_layer(
    make_model: MakeModel, make_artifact: MakeArtifact
) -> None:
    artifact = make_artifact(make_model(), Precision.FP8, high_precision=Precision.BF16, max_loss=1)
    model = ir.load(artifact.graph(CANONICAL))
    require_compatible(model, ir.DataType.BFLOAT16)
    scale = model.graph.initializers["layers.1.mlp.down_proj.weight_scale"]
    scale.dtype = ir.DataType.FLOAT
    with pytest.raises(DamagedError, match=r"scale layers\.1.* in BFLOAT16, found FLOAT at layers"):
        require_compatible(model, ir.DataType.BFLOAT16)


@pytest.mark.parametrize("opset", [0, 26])
def test_opset_that_tensorrt_does_not_read_is_refused(
    make_model: MakeModel, make_artifact: MakeArtifact, opset: int
) -> None:
    model = ir.load(make_artifact(make_model(), Precision.BF16).graph(CANONICAL))
    model.graph.opset_imports[""] = opset
    with pytest.raises(DamagedError, match=f"expected opset 1 to 25, found {opset}"):
        require_compatible(model, ir.DataType.BFLOAT16)
