"""Engines by TensorRT-RTX, which builds real ones without a GPU; skipped where it is not installed.

pip install anna-export[rtx]
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import hash_file
from anna_export.choices import Target
from anna_export.cli import run
from anna_export.engines.build import build, gpu_form
from anna_export.engines.builder import Options, build_plan
from anna_export.engines.capability import Capability
from anna_export.engines.layers import Layer
from anna_export.engines.profiles import choose_profiles
from anna_export.engines.record import EngineRecord
from anna_export.engines.request import EngineRequest
from anna_export.errors import DamagedError, InputError
from anna_export.progress import no_stage
from anna_export.spec import Precision
from tests.support.st_folders import dense, save_st
from tests.support.types import MakeArtifact, MakeModel

trt: Any = pytest.importorskip("tensorrt_rtx")

ADA, BLACKWELL, AMPERE = Capability(8, 9), Capability(12, 0), Capability(8, 0)
RTX = Target.TENSORRT_RTX
PROMPT = {"tasks": {"find": {"text": "Find the passage that answers: "}}}


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
        sliding_window=None,
        initializer_range=0.1,
    )


@pytest.fixture(scope="module")
def artifact_of(
    model: Path, make_artifact: MakeArtifact, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Artifact]:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.json"
    prompts.write_text(json.dumps(PROMPT))

    def make(precision: Precision, high_precision: Precision | None, prompted: bool) -> Artifact:
        fp8 = {"max_loss": 1, "high_precision": high_precision} if high_precision else {}
        return make_artifact(
            model, precision, max_tokens=128, prompts=prompts if prompted else None, **fp8
        )

    return make


KINDS = pytest.mark.parametrize(
    ("precision", "high_precision"),
    [
        (Precision.BF16, None),
        (Precision.FP16, None),
        (Precision.FP8, Precision.BF16),
        (Precision.FP8, Precision.FP16),
    ],
    ids=["bf16", "fp16", "fp8", "fp8 in fp16"],
)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["lasttoken", "mean", "cls"])
@pytest.mark.parametrize("include_prompt", [False, True])
def test_every_head_builds(
    model: Path, make_artifact: MakeArtifact, tmp_path: Path, pooling: str, include_prompt: bool
) -> None:
    layers = [dense(256, 64, torch.nn.GELU()), dense(64, 32, torch.nn.SiLU())]
    folder = save_st(model, tmp_path / "st", pooling, include_prompt=include_prompt, layers=layers)
    artifact = make_artifact(folder, Precision.BF16, max_tokens=128)
    built = build(artifact, EngineRequest(RTX, (BLACKWELL,)), no_stage)
    (record,) = built.records.values()
    assert record.fusion_report == ()


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("prompted", [False, True], ids=["bare", "prefix"])
def test_engines_are_as_meant_on_both_gpus(
    artifact_of: Callable[..., Artifact],
    precision: Precision,
    high_precision: Precision | None,
    prompted: bool,
) -> None:
    artifact = artifact_of(precision, high_precision, prompted)
    records = build(artifact, EngineRequest(RTX, (ADA, BLACKWELL)), no_stage).records
    names = [f"engines/tensorrt-rtx/{name}.engine" for name in ("sm_89", "sm_120")]
    assert list(records) == names
    for record in records.values():
        assert record.fusion_report == ()
        assert record.prefix == prompted
        layers = record.layers
        assert layers["fused attention"] == 2
        # q, k, v; o; gate, up; down; and in the last layer the query apart
        assert layers["fp8 products"] == (9 if precision is Precision.FP8 else 0)
    # listed, with hashes that hold
    opened = open_artifact(artifact.folder, check=True)
    for name, record in records.items():
        assert name in opened.manifest.evidence
        stored = json.loads((artifact.folder / name).with_suffix(".json").read_text())
        assert EngineRecord.model_validate(stored) == record
        assert record.sha256 == hash_file(artifact.folder / name).sha256
    assert not list(artifact.folder.glob(".build-*"))


def plan_of(artifact: Artifact, folder: Path, capability: Capability = ADA) -> list[Layer]:
    graph = folder / "engine.onnx"
    ir.save(gpu_form(artifact), graph, external_data="engine.data")
    options = Options(EngineRequest(RTX), capability, tuple(choose_profiles(64, [])))
    return build_plan(trt, graph, artifact.manifest.spec, options).layers


@pytest.mark.parametrize("capability", [ADA, BLACKWELL], ids=str)
def test_products_of_one_input_are_one_and_pooling_is_one_kernel(
    artifact_of: Callable[..., Artifact], tmp_path: Path, capability: Capability
) -> None:
    artifact = artifact_of(Precision.FP8, Precision.BF16, False)
    layers = plan_of(artifact, tmp_path, capability)
    attention = [f"layers.0.self_attn.{name}_proj" for name in "qkv"]
    products = [set(layer.modules) for layer in layers if layer.modules]
    assert set(attention) in products
    assert {"layers.1.mlp.gate_proj", "layers.1.mlp.up_proj"} in products
    # the last kernel ends in the norm's root and the division by it, and nothing follows it
    assert layers[-1].kind == "kgen" and layers[-1].name.split("_myl0")[0].endswith("SqrtMaxDiv")
    # a scan over all tokens and a scatter are how a gather in batches goes slowly
    assert not [layer.name for layer in layers if "Cums" in layer.name or "Scat" in layer.name]


@pytest.mark.slow
def test_two_builds_are_identical(artifact_of: Callable[..., Artifact]) -> None:
    artifact = artifact_of(Precision.FP8, Precision.BF16, False)
    request = EngineRequest(RTX, (ADA,))
    first, second = (build(artifact, request, no_stage).records for _ in range(2))
    (name,) = first
    assert first[name].sha256 == second[name].sha256


def test_gpu_without_fp8_gets_no_engine_even_unasked(
    artifact_of: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact = artifact_of(Precision.FP8, Precision.BF16, False)
    with pytest.raises(InputError, match=r"for FP8 \(layers\.0\.mlp\.down_proj\), found 8\.0"):
        build(artifact, EngineRequest(RTX, (AMPERE,)), no_stage)
    # and the library itself finds no kernel
    with pytest.raises(InputError, match=r"find kernels for compute capability 8\.0, found: "):
        plan_of(artifact, tmp_path, AMPERE)


def test_operator_that_the_library_does_not_know_is_named(
    artifact_of: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact = artifact_of(Precision.BF16, None, False)
    form = gpu_form(artifact)
    node = next(node for node in form.graph if node.op_type == "Sigmoid")
    node.op_type, node.name = "Sigmoidal", "layers.0.mlp.gate"
    ir.save(form, tmp_path / "engine.onnx", external_data="engine.data")
    with pytest.raises(
        DamagedError, match=r"tensorrt-rtx 1\.7.* takes, found layers\.0\.mlp\.gate"
    ):
        build_plan(
            trt,
            tmp_path / "engine.onnx",
            artifact.manifest.spec,
            Options(EngineRequest(RTX), ADA, tuple(choose_profiles(64, []))),
        )


def test_progress_is_told_in_steps_up_to_the_last(
    artifact_of: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact = artifact_of(Precision.BF16, None, False)
    graph = tmp_path / "engine.onnx"
    ir.save(gpu_form(artifact), graph, external_data="engine.data")
    reported: list[tuple[int, int]] = []
    options = Options(EngineRequest(RTX), ADA, tuple(choose_profiles(64, [])))
    build_plan(trt, graph, artifact.manifest.spec, options, lambda *done: reported.append(done))
    assert reported and all(0 < done <= total for done, total in reported)


def test_interrupt_stops_the_build_and_leaves_the_artifact_as_it_was(
    artifact_of: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact = artifact_of(Precision.BF16, None, True)
    graph = tmp_path / "engine.onnx"
    ir.save(gpu_form(artifact), graph, external_data="engine.data")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    options = Options(EngineRequest(RTX), ADA, tuple(choose_profiles(64, [2])))
    with pytest.raises(KeyboardInterrupt):
        build_plan(trt, graph, artifact.manifest.spec, options, interrupt)


# -- the command --


@pytest.mark.slow
def test_command_builds_and_prints(
    artifact_of: Callable[..., Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = artifact_of(Precision.BF16, None, False)
    assert run(["build", str(artifact.folder), "--compute-capability", "8.9"]) == 0
    out = capsys.readouterr().out
    assert "sm_89.engine" in out and "fusion check  passed" in out and "sm_120" not in out
    command = ["build", str(artifact.folder), "--compute-capability", "12.0", "--json"]
    assert run(command) == 0
    engines = json.loads(capsys.readouterr().out)["engines"]
    assert list(engines) == ["engines/tensorrt-rtx/sm_120.engine"]
    # the other one is still there
    assert (artifact.folder / "engines/tensorrt-rtx/sm_89.engine").exists()


def test_export_builds_what_it_is_asked_to(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "artifact"
    command = ["--model", str(model), "--out", str(out), "--bf16", "--no-verify"]
    command += ["--target", "tensorrt-rtx", "--compute-capability"]
    assert run([*command, "9.0"]) == 2
    assert "which TensorRT-RTX compiles for, found 9.0" in capsys.readouterr().err
    # refused before anything was written
    assert not out.exists()
    assert run([*command, "8.9"]) == 0
    assert "engines/tensorrt-rtx/sm_89.engine" in open_artifact(out, check=True).manifest.evidence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8", "--target", "tensorrt-rtx"], "found int8; export it in bf16 or fp8"),
        (["--bf16", "--compute-capability", "8.9"], "expected --target with --compute-capability"),
        (["--bf16", "--target", "tensorrt"], "expected --compute-capability of a GPU"),
    ],
)
def test_export_refuses_engines_that_cannot_be(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    out = tmp_path / "artifact"
    assert run(["--model", str(model), "--out", str(out), "--no-verify", *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
