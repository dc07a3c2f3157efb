"""Quantised artifacts: proved in whatever way fits, the same in every backend, told in full."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from anna_export import quantise
from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import CALIBRATION_FILE, MANIFEST_FILE, FileEntry, identity
from anna_export.backends import open_encoder, pytorch
from anna_export.cli import run
from anna_export.console.output import stage
from anna_export.errors import DamagedError, InputError, SpaceError
from anna_export.export.pipeline import Exported, export
from anna_export.export.recipe import Recipe
from anna_export.graph.external_data import DATA_FILE
from anna_export.graph.names import CPU
from anna_export.graph.tensors import IR_DTYPES
from anna_export.machine import memory as process_memory
from anna_export.quantise.calibration import read_calibration
from anna_export.quantise.footprint import forecast
from anna_export.quantise.options import Int8, storage
from anna_export.reference import load
from anna_export.reference.streamed import open_streamed_artifact
from anna_export.spec import Precision
from anna_export.verify.prove import STREAMED_TEXTS, prove
from anna_export.verify.texts import ordinary_texts
from anna_export.weights.checkpoint import Checkpoint
from tests.support.folders import edit_json
from tests.support.types import MakeAdapter, MakeArtifact, MakeBatch, MakeModel, Refused, RunGraph

Exports = Callable[[Precision], Exported]
QUANTISED = sorted(set(Precision) - set(IR_DTYPES))


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Path:
    # whole blocks of 32 inputs, which int4 needs
    return make_model(initializer_range=0.1, hidden_size=64, intermediate_size=96)


@pytest.fixture(scope="module")
def adapter(model: Path, make_adapter: MakeAdapter) -> Path:
    return make_adapter(model)


@pytest.fixture(scope="module")
def exported(
    model: Path, adapter: Path, few_texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exports:
    """The proved export in a quantised precision, made once."""
    exports: dict[Precision, Exported] = {}

    def make(precision: Precision) -> Exported:
        if precision not in exports:
            out = tmp_path_factory.mktemp("precision") / precision
            recipe = Recipe(
                model, adapter, out, storage(precision, calibration=few_texts, max_loss=0.5), 61
            )
            exports[precision] = export(recipe, stage)
        return exports[precision]

    return make


@pytest.fixture
def copy(exported: Exports, tmp_path: Path) -> Path:
    """A copy of the int8 artifact, to change."""
    folder = exported(Precision.INT8).artifact.folder
    return Path(shutil.copytree(folder, tmp_path / "copy"))


# -- what is proved --


@pytest.mark.parametrize("precision", QUANTISED)
def test_proof_holds_a_quantised_precision_to_its_mean_loss(
    exported: Exports, precision: Precision
) -> None:
    parity = exported(precision).parity
    assert parity is not None and parity.verdict == "pass"
    assert (
        parity.thresholds.min_cosine is None
        and 1e-6 < parity.loss <= 0.5 == parity.thresholds.max_loss
    )
    assert parity.loss == 1 - parity.mean_cosine
    # rounded it is: not fp32 in disguise
    assert parity.worst_cosine < 0.99999


@pytest.mark.parametrize("precision", QUANTISED)
def test_vector_is_the_same_alone_and_in_a_batch(exported: Exports, precision: Precision) -> None:
    parity = exported(precision).parity
    assert parity is not None and parity.batch1_worst_cosine is not None
    assert parity.batch1_worst_cosine >= 0.9999 == parity.thresholds.batch1_min_cosine


@pytest.mark.parametrize("precision", QUANTISED)
def test_proof_says_what_was_computed_in(exported: Exports, precision: Precision) -> None:
    parity = exported(precision).parity
    assert parity is not None and parity.candidate.startswith("ort: ")
    bits = {Precision.INT8: "int8", Precision.INT4: "4-bit", Precision.FP8: "fp8"}[precision]
    assert bits in parity.candidate.lower()


@pytest.mark.parametrize("precision", QUANTISED)
def test_seconds_are_told_by_stage(exported: Exports, precision: Precision) -> None:
    seconds = exported(precision).seconds
    assert list(seconds) == ["calibrate", "merge and write", "prove"]


# -- the same in every backend --


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("backend", ["pytorch", "streamed"])
def test_stored_weights_give_the_graphs_vectors(
    exported: Exports,
    run_graph: RunGraph,
    make_batch: MakeBatch,
    backend: str,
    precision: Precision,
) -> None:
    artifact, batch = exported(precision).artifact, make_batch(*range(1, 60, 2))
    opened = (
        pytorch.open_backend(artifact) if backend == "pytorch" else open_streamed_artifact(artifact)
    )
    vectors = opened.run(batch).astype(np.float64)
    losses = 1 - (vectors * run_graph(artifact, CPU, batch)).sum(axis=1)
    # the odd rounding turns over, which moves a vector of so small a model; most have none
    assert losses.max() <= 1e-3 and np.median(losses) <= 2e-5
    # as against what quantising costs
    parity = exported(precision).parity
    assert parity is not None and losses.mean() <= 0.1 * parity.loss


def test_verify_compares_stored_weights_in_pytorch(
    copy: Path, model: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", copy, "--reference", model, "--adapter", adapter, "--backend", "pytorch"]
    assert run([*map(str, command), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verdict"] == "pass" and result["tasks"] is None
    assert result["vectors"]["candidate"].startswith("pytorch: ")


@pytest.mark.parametrize("precision", QUANTISED)
def test_cuda_is_refused_with_what_to_do(exported: Exports, precision: Precision) -> None:
    with pytest.raises(InputError, match="expected `device` cpu, found cuda: ") as error:
        open_encoder(exported(precision).artifact.folder, device="cuda")
    advice = "`high_precision` fp16" if precision is Precision.FP8 else "fp8 or bf16 for a GPU"
    assert advice in str(error.value) and "\n" not in str(error.value)


# -- which way it is proved --


def memory_for(artifact: Artifact, monkeypatch: pytest.MonkeyPatch, *, both: bool) -> None:
    """Let memory hold the artifact and, if both, no more than a little short of both."""
    manifest = artifact.manifest
    scheme = quantise.load(manifest.precision)
    needed = forecast(manifest.spec, manifest.framing, scheme)
    memory = needed.serve_bytes + needed.reference_bytes - (1 << 20) if both else needed.serve_bytes
    monkeypatch.setattr(process_memory, "available_memory_bytes", lambda: memory)


def test_artifact_that_alone_fits_is_compared_with_a_streamed_reference(
    exported: Exports, model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = exported(Precision.INT8).artifact
    memory_for(artifact, monkeypatch, both=True)
    calls: list[tuple[int, int]] = []
    parity = prove(artifact, model, adapter, lambda *at: calls.append(at))
    assert parity.method.startswith("a few texts by both") and "layer by layer" in parity.method
    assert parity.texts == len(STREAMED_TEXTS) and parity.verdict == "pass"
    # the graph itself, alone and in batches
    assert parity.candidate == "ort: int8 products on CPU, fp32 elsewhere"
    assert parity.reference.endswith("layer by layer, from base and adapter")
    assert parity.batch1_worst_cosine is not None and parity.batch1_worst_cosine >= 0.9999
    assert parity.reference_sha256 == artifact.manifest.source.sha256
    assert calls == sorted(calls) and calls[-1] == (
        len(STREAMED_TEXTS),
        len(STREAMED_TEXTS),
    )


def test_few_texts_give_the_figures_that_all_models_in_memory_give(
    exported: Exports, model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = exported(Precision.INT8).artifact
    memory_for(artifact, monkeypatch, both=True)
    parity = prove(artifact, model, adapter)
    reference = load.open_reference(model, adapter, framing=artifact.manifest.framing)
    expected = reference.encode(STREAMED_TEXTS).astype(np.float64)
    vectors = open_encoder(artifact.folder).encode(STREAMED_TEXTS)
    # fp32 on both sides, in other batches
    assert parity.loss == pytest.approx(1 - (expected * vectors).sum(axis=1).mean(), abs=1e-6)


def test_artifact_that_does_not_fit_is_compared_by_its_stored_weights(
    exported: Exports, model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = exported(Precision.INT8).artifact
    memory_for(artifact, monkeypatch, both=False)
    parity = prove(artifact, model, adapter)
    assert parity.method.startswith("weights only, layer by layer") and parity.verdict == "pass"
    assert parity.batch1_worst_cosine is None
    # rounded as the graph rounds, inputs too
    proved = exported(Precision.INT8).parity
    assert proved is not None and parity.loss == pytest.approx(proved.loss, rel=0.5)
    with pytest.raises(SpaceError, match="leave both out to compare the stored weights"):
        prove(artifact, model, adapter, backend="ort")


# -- manifest and calibration --


@pytest.mark.parametrize("precision", QUANTISED)
def test_manifest_tells_how_it_was_quantised(
    exported: Exports, few_texts: Path, precision: Precision
) -> None:
    artifact = exported(precision).artifact
    opened = open_artifact(artifact.folder, check=True)
    assert opened.manifest == artifact.manifest
    stored, calibration = opened.manifest.quantised, read_calibration(opened)
    assert stored is not None and calibration is not None
    assert stored.compute_dtype == quantise.load(precision).compute_dtype
    assert stored.calibration_sha256 == calibration.texts_sha256
    assert stored.calibration_texts == calibration.texts <= len(few_texts.read_text().splitlines())
    assert stored.calibration_tokens == calibration.tokens > stored.calibration_texts
    assert stored.unquantized == calibration.unquantized
    assert stored.max_loss == 0.5 == quantise.scheme_of(opened.manifest).thresholds.max_loss
    modules = opened.manifest.spec.linear_modules()
    assert calibration.inputs.keys() == set(modules.values())
    assert calibration.snr_db.keys() == {
        module for module, name in modules.items() if name not in calibration.unquantized
    }


def test_hash_of_the_texts_is_of_their_ids(
    exported: Exports, model: Path, tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    (tmp_path / "t.txt").write_text("\n".join(ordinary_texts(5)))
    other = make_artifact(model, Precision.INT8, calibration=tmp_path / "t.txt", max_loss=1.0)
    first = exported(Precision.INT8).artifact.manifest.quantised
    second = other.manifest.quantised
    assert first is not None and second is not None
    assert first.calibration_sha256 != second.calibration_sha256


def test_artifact_of_before_there_was_quantisation_opens(
    model: Path, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    artifact = make_artifact(model)
    folder = Path(shutil.copytree(artifact.folder, tmp_path / "old"))
    edit_json(folder / MANIFEST_FILE, lambda manifest: manifest.pop("quantised"))
    assert open_artifact(folder, check=True).manifest == artifact.manifest
    assert read_calibration(Artifact(folder, artifact.manifest)) is None
    assert open_encoder(folder).encode(["a"]).shape == (1, artifact.manifest.spec.dim)


def test_changed_calibration_is_damage(copy: Path) -> None:
    path = copy / CALIBRATION_FILE
    path.write_text(path.read_text().replace("amax", "amin", 1))
    with pytest.raises(DamagedError, match=r"calibration\.json \(other content\)"):
        open_artifact(copy)


def test_calibration_is_part_of_the_identity(copy: Path) -> None:
    manifest = open_artifact(copy).manifest
    files = dict(manifest.files)
    assert identity(files, manifest.spec, manifest.framing) == manifest.artifact_id
    entry = files[CALIBRATION_FILE]
    files[CALIBRATION_FILE] = FileEntry(sha256="0" * 64, size_bytes=entry.size_bytes)
    assert identity(files, manifest.spec, manifest.framing) != manifest.artifact_id


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"inputs": 3}', '{"inputs": {"a": {"b": 1}}}', "not json"]
)
def test_calibration_of_something_else_is_refused(copy: Path, content: str) -> None:
    artifact = open_artifact(copy)
    (copy / CALIBRATION_FILE).write_text(content)
    with pytest.raises(DamagedError) as error:
        read_calibration(artifact)
    assert str(copy / CALIBRATION_FILE) in str(error.value) and "\n" not in str(error.value)


def test_layer_without_noise_has_a_ratio_that_is_a_number(
    model: Path, few_texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "base"))
    weights = load_file(folder / "model.safetensors")
    weights["layers.1.mlp.down_proj.weight"].zero_()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    out = tmp_path / "out"
    recipe = Recipe(folder, None, out, Int8(few_texts), 61, verify=False)
    export(recipe, stage)

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    text = (out / CALIBRATION_FILE).read_text()
    snr_db = json.loads(text, parse_constant=refuse)["snr_db"]
    assert snr_db["layers.1.mlp.down_proj"] == max(snr_db.values()) == 150
    assert run(["inspect", str(out), "--layers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=refuse)["snr_db"] == snr_db


def test_layers_of_a_float_artifact_are_refused(
    model: Path, make_artifact: MakeArtifact, refused: Refused
) -> None:
    line = refused("inspect", make_artifact(model).folder, "--layers")
    assert line.startswith("expected an artifact in fp8, int8 or int4, found fp32 in ")


@pytest.mark.parametrize(
    ("precision", "most"), [(Precision.INT8, 0.3), (Precision.INT4, 0.3), (Precision.FP8, 0.55)]
)
def test_quantised_weights_take_their_share_of_fp32(
    exported: Exports, model: Path, precision: Precision, most: float
) -> None:
    size = exported(precision).artifact.manifest.files[DATA_FILE].size_bytes
    # the table of tokens is most of so small a model: int8 in int4 too, bf16 in fp8
    assert size <= most * 4 * Checkpoint.open(model).spec.parameters


# -- options that make no sense --


@pytest.mark.parametrize("precision", IR_DTYPES)
def test_texts_for_a_precision_that_needs_none_are_refused(
    base: Path, few_texts: Path, root: Path, refused: Refused, precision: Precision
) -> None:
    options = ["--model", base, "--out", root / "out", f"--{precision}"]
    line = refused(*options, "--calibration", few_texts)
    assert line.startswith("expected --calibration with fp8, int8 or int4, found it with ")
    assert precision in line


@pytest.mark.parametrize("precision", [other for other in Precision if other is not Precision.FP8])
def test_high_precision_type_is_refused_with_other_precisions(
    base: Path, root: Path, refused: Refused, precision: Precision
) -> None:
    out = root / "out"
    line = refused("--model", base, "--out", out, f"--{precision}", "--high-precision", "bf16")
    assert line.startswith(f"expected --high-precision with fp8, found it with {precision}")


def test_high_precision_type_that_there_is_not_is_refused_with_those_there_are(
    base: Path, root: Path, refused: Refused
) -> None:
    out = root / "out"
    line = refused("--model", base, "--out", out, "--fp8", "--high-precision", "int8")
    assert all(f"'{name}'" in line for name in ("int8", "bf16", "fp16", "fp32"))


def test_verify_on_cuda_is_refused_in_one_line(
    copy: Path, model: Path, adapter: Path, refused: Refused
) -> None:
    command = ["verify", copy, "--reference", model, "--adapter", adapter]
    line = refused(*command, "--backend", "ort", "--device", "cuda")
    assert line.startswith("expected --device cpu, found cuda: int8 is for CPUs")
