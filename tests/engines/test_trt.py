"""The trt backend over a simulated library and GPU: shapes, memory, recordings, and refusals."""

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from anna_export import backends
from anna_export.artifact.evidence import add_evidence
from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.prefixes import StoredPrefixes
from anna_export.backends import open_encoder, trt
from anna_export.choices import Target
from anna_export.encoder import Encoder
from anna_export.engines.profiles import (
    FREE_TOKENS,
    TOKEN_BUDGET,
    Bucket,
    choose_bucket,
    choose_profiles,
)
from anna_export.engines.record import EngineRecord
from anna_export.engines.stored import StoredEngine, require_engine
from anna_export.errors import AnnaError, DamagedError, InputError, MissingError, SpaceError
from anna_export.graph.names import CANONICAL
from anna_export.graph.passes.gpu_attention import InputsToGive, WithoutPrefix
from anna_export.graph.passes.merge_linear import MergeLinear
from anna_export.machine.gpu import Device
from anna_export.text.batch import TokenBatch
from anna_export.text.batching import BatchLimits
from anna_export.text.prompts import Prompt
from anna_export.verify.texts import long_text, ordinary_texts
from tests.engines.simulated_gpu import SimulatedCuda, SimulatedTensorRT
from tests.support.st_folders import dense, save_st
from tests.support.types import MakeArtifact

HOPPER = Device((9, 0), "13.0")
TEXTS = [*ordinary_texts(12), "a", long_text(90), long_text(40), long_text(91)]
PROMPTS = {"few": {"text": f"{long_text(20)}: "}, "other": {"text": f"{long_text(30)}: "}}
BUDGET = 256


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps({"tasks": PROMPTS}))
    return path


@pytest.fixture(scope="module", params=["bare", "prefix"])
def plain(
    request: pytest.FixtureRequest, base: Path, make_artifact: MakeArtifact, prompts: Path
) -> Artifact:
    return make_artifact(
        base, max_tokens=256, prompts=prompts if request.param == "prefix" else None
    )


@pytest.fixture(scope="module")
def prompted(base: Path, make_artifact: MakeArtifact, prompts: Path) -> Artifact:
    return make_artifact(base, max_tokens=256, prompts=prompts)


def with_engine(plain: Artifact, folder: Path, target: Target, **changes: Any) -> Artifact:
    """Return a copy of an artifact with an engine that the simulated library loads."""
    artifact = Artifact(folder / "artifact", plain.manifest)
    shutil.copytree(plain.folder, artifact.folder)
    model = ir.load(plain.graph(CANONICAL))
    prefixes = [len(entry.ids) for entry in plain.manifest.prefixes.values()]
    if not prefixes:
        WithoutPrefix()(model)
    InputsToGive()(model)
    MergeLinear()(model)
    ir.save(model, folder / "form.onnx", external_data="form.data")
    name = f"engines/{target}/sm_90.engine"
    content = str(folder / "form.onnx").encode()
    artifact = add_evidence(artifact, name, memoryview(content), prompts=())
    entry = artifact.manifest.evidence[name]
    record = EngineRecord(
        target=target,
        version="11.4.0",
        compute_capability="9.0",
        driver="13.0",
        artifact_id=plain.manifest.artifact_id,
        onnx_sha256=plain.manifest.files[plain.manifest.graphs[CANONICAL]].sha256,
        structure_sha256="",
        prefix=bool(prefixes),
        portable=False,
        refittable=False,
        profiles=tuple(choose_profiles(256, prefixes, BUDGET)),
        layers={},
        fusion_report=(),
        seconds=1,
        sha256=entry.sha256,
        size_bytes=entry.size_bytes,
    ).model_copy(update=changes)
    return add_evidence(
        artifact, name.replace(".engine", ".json"), record.model_dump_json(), prompts=()
    )


class Opened:
    """An encoder over an engine in the simulated library, and that library."""

    def __init__(self, artifact: Artifact, refuses: str = "", **cuda: Any) -> None:
        self.stored: StoredEngine = require_engine(artifact, HOPPER)
        self.cuda = SimulatedCuda(**cuda)
        self.trt = SimulatedTensorRT(
            self.cuda, artifact.manifest.spec, self.stored.record.profiles, refuses=refuses
        )
        library: Any = self.trt
        self.backend = trt.load_stored(artifact, self.stored, library, self.cuda)
        self.encoder = Encoder(
            self.backend,
            artifact.tokeniser(),
            artifact.manifest.prompts,
            StoredPrefixes(artifact),
            BatchLimits(BUDGET, pairs=None, single=None),
        )


@pytest.mark.parametrize("target", Target, ids=str)
@pytest.mark.parametrize("prompted", [False, True], ids=["bare", "prefix"])
def test_head_that_leaves_out_the_prompt_is_that_of_onnx_runtime(
    base: Path,
    make_artifact: MakeArtifact,
    prompts: Path,
    tmp_path: Path,
    target: Target,
    prompted: bool,
) -> None:
    model = save_st(
        base, tmp_path / "st", "mean", include_prompt=False, layers=[dense(40, 24)], normalize=False
    )
    artifact = make_artifact(model, max_tokens=256, prompts=prompts if prompted else None)
    opened = Opened(with_engine(artifact, tmp_path, target))
    prompt = "few" if prompted else Prompt("find it: ")
    vectors = opened.encoder.encode(TEXTS, prompt)
    assert vectors.shape == (len(TEXTS), 24)
    expected = open_encoder(artifact.folder).encode(TEXTS, prompt)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    unprompted = open_encoder(artifact.folder).encode(TEXTS, "")
    assert np.abs(vectors - unprompted).max() > 1e-3


@pytest.fixture(params=list(Target), ids=str)
def opened(request: pytest.FixtureRequest, plain: Artifact, tmp_path: Path) -> Opened:
    return Opened(with_engine(plain, tmp_path, request.param))


# -- vectors --


def test_vectors_are_those_of_onnx_runtime(opened: Opened, plain: Artifact) -> None:
    expected = open_encoder(plain.folder, backend="ort")
    for prompt in ("", *plain.manifest.prompts.by_name):
        vectors = opened.encoder.encode(TEXTS, prompt)
        # products are joined, and rows stand in other batches
        np.testing.assert_allclose(vectors, expected.encode(TEXTS, prompt), atol=2e-6, rtol=0)


def test_a_recording_gives_what_it_gave_when_it_was_made(opened: Opened) -> None:
    first = opened.encoder.encode(TEXTS)
    launches = opened.cuda.launches
    contexts = len(opened.trt.contexts)
    again = opened.encoder.encode(TEXTS)
    np.testing.assert_array_equal(again, first)
    assert len(opened.trt.contexts) == contexts
    recorded = opened.stored.record.target is Target.TENSORRT
    assert (opened.cuda.launches > launches) == recorded
    # TensorRT-RTX records small batches by itself
    assert any(context.records_itself for context in opened.trt.contexts) != recorded


def test_texts_of_one_bucket_share_its_recording(opened: Opened) -> None:
    tokens = [opened.encoder.encode_ids([[1, *range(5, 5 + n), 2]]) for n in (9, 11, 14, 10)]
    assert len({row.tobytes() for row in tokens}) == 4
    assert len(opened.trt.contexts) == 1


def test_more_rows_than_a_profile_takes_are_computed_in_parts(opened: Opened) -> None:
    profile = opened.stored.record.profiles[0]
    rows = [[1, 7 + n, 2] for n in range(3 * profile.batch + 1)]
    batch = TokenBatch.of_rows(rows, opened.encoder.tokeniser.framing.pad_id)
    vectors = opened.backend.run(batch)
    alone = np.concatenate([opened.encoder.encode_ids([row]) for row in rows[:: profile.batch]])
    np.testing.assert_allclose(vectors[:: profile.batch], alone, atol=2e-6, rtol=0)


def test_no_text_gives_no_vector(opened: Opened) -> None:
    assert opened.encoder.encode([]).shape == (0, opened.encoder.dim)


def test_it_names_its_engine(opened: Opened) -> None:
    record = opened.stored.record
    assert opened.backend.name == "trt"
    assert opened.backend.compute_label == (
        f"fp32 in {record.target} 11.4.0 for compute capability 9.0 (engine {record.sha256[:12]})"
    )


# -- memory --


def test_a_prefix_is_copied_once_and_what_is_gone_is_freed(
    prompted: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(with_engine(prompted, tmp_path, Target.TENSORRT))
    first = opened.encoder.encode(["a", "b"], "few")
    blocks = set(opened.cuda.device)
    opened.encoder.encode(["a", "c"], "few")
    assert set(opened.cuda.device) == blocks
    monkeypatch.setattr(trt, "MOST_PREFIX_BYTES", 1)
    opened.encoder.encode(["a", "b"], "other")
    gc.collect()
    # two blocks of the one prefix for two of the other, and its recording
    assert len(opened.cuda.device) == len(blocks)
    assert len(opened.cuda.recorded) == 1
    np.testing.assert_array_equal(opened.encoder.encode(["a", "b"], "few"), first)


def test_recordings_used_longest_ago_go_first(
    prompted: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt, "MOST_LAUNCHES", 2)
    opened = Opened(with_engine(prompted, tmp_path, Target.TENSORRT))
    for tokens in (5, 20, 5, 40):
        opened.encoder.encode_ids([[1] * tokens])
    gc.collect()
    assert len(opened.cuda.recorded) == 2
    contexts = len(opened.trt.contexts)
    opened.encoder.encode_ids([[1] * 5])
    assert len(opened.trt.contexts) == contexts


def test_all_memory_is_given_back(prompted: Artifact, tmp_path: Path) -> None:
    opened = Opened(with_engine(prompted, tmp_path, Target.TENSORRT))
    opened.encoder.encode(TEXTS, "few")
    cuda = opened.cuda
    assert cuda.device and cuda.host and cuda.recorded
    del opened
    gc.collect()
    assert not cuda.device and not cuda.host and not cuda.recorded and not cuda.graphs


def test_a_full_gpu_is_said_in_one_line(prompted: Artifact, tmp_path: Path) -> None:
    artifact = with_engine(prompted, tmp_path, Target.TENSORRT)
    with pytest.raises(SpaceError, match=r"expected 0\.00 GB of free memory on the GPU, found"):
        Opened(artifact, capacity=4096)


# -- buckets --


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64, 1000])
@pytest.mark.parametrize("tokens", [1, 8, 9, 63, 64, 65, 300, 512, 4096, 5000])
def test_a_bucket_holds_its_batch_within_its_profile(rows: int, tokens: int) -> None:
    profiles = choose_profiles(5000, [])
    bucket = choose_bucket(profiles, rows, tokens)
    profile = profiles[bucket.profile]
    assert profile.shortest <= tokens <= bucket.tokens <= profile.longest
    assert min(rows, profile.batch) <= bucket.rows <= profile.batch
    if not bucket.is_small:
        assert (bucket.rows, bucket.tokens) == (min(rows, profile.batch), tokens)


@pytest.mark.parametrize("tokens", [1, 3, 20, 95])
def test_padding_passes_no_position_that_the_model_has_not(tokens: int) -> None:
    profiles = choose_profiles(100, [])
    assert choose_bucket(profiles, 1, tokens, 100 - tokens).tokens == tokens


def test_small_batches_have_few_buckets() -> None:
    profiles = choose_profiles(4096, [])
    shapes = [(rows, tokens) for rows in range(1, 257) for tokens in range(1, 257)]
    buckets = {choose_bucket(profiles, *shape) for shape in shapes}
    small = {bucket for bucket in buckets if bucket.is_small}
    assert len(small) <= 80
    assert (
        Bucket(0, 4, 16, is_small=True) in small
        and max(bucket.rows * bucket.tokens for bucket in small) <= FREE_TOKENS
    )


# -- which engine, and what is refused --


@pytest.mark.parametrize(
    ("changes", "device", "error", "message"),
    [
        (
            {},
            Device((8, 9), "13.0"),
            MissingError,
            r"capability 8\.9, found tensorrt 11\.4\.0 for compute capability 9\.0",
        ),
        ({"artifact_id": "0"}, HOPPER, DamagedError, "one built from another's; build it again"),
        ({"sha256": "0"}, HOPPER, DamagedError, "its own record, found another file or record"),
        ({"driver": "13.2"}, HOPPER, InputError, r"driver of CUDA 13\.2 or newer.*found 13\.0"),
        ({"prefix": False}, HOPPER, InputError, "built before a prompt was baked; build it again"),
    ],
    ids=["another GPU", "another graph", "another file", "older driver", "prompt baked since"],
)
def test_engine_that_is_not_for_this_machine_is_refused(
    prompted: Artifact,
    tmp_path: Path,
    changes: dict[str, Any],
    device: Device,
    error: type[AnnaError],
    message: str,
) -> None:
    artifact = with_engine(prompted, tmp_path, Target.TENSORRT, **changes)
    with pytest.raises(error, match=message) as caught:
        require_engine(artifact, device)
    assert "`backend` ort" in str(caught.value) and "\n" not in str(caught.value)


def test_portable_engine_is_for_every_newer_gpu(prompted: Artifact, tmp_path: Path) -> None:
    artifact = with_engine(prompted, tmp_path, Target.TENSORRT, portable=True)
    assert require_engine(artifact, Device((10, 0), "13.1")).record.portable
    with pytest.raises(MissingError, match=r"compute capability 7\.5"):
        require_engine(artifact, Device((7, 5), "13.1"))


def test_engine_for_just_this_gpu_goes_before_a_portable_one(
    prompted: Artifact, tmp_path: Path
) -> None:
    artifact = with_engine(prompted, tmp_path, Target.TENSORRT, portable=True)
    record = json.loads((artifact.folder / "engines/tensorrt/sm_90.json").read_text())
    record |= {"portable": False, "compute_capability": "10.0"}
    name = "engines/tensorrt/sm_100"
    artifact = add_evidence(
        artifact, f"{name}.engine", memoryview(str(tmp_path / "form.onnx").encode()), prompts=()
    )
    artifact = add_evidence(artifact, f"{name}.json", json.dumps(record), prompts=())
    assert not require_engine(artifact, Device((10, 0), "13.1")).record.portable
    assert require_engine(artifact, HOPPER).record.portable


def test_plains_says_how_to_build_one(prompted: Artifact) -> None:
    with pytest.raises(MissingError, match="found none; build one with anna-export build"):
        require_engine(prompted, HOPPER)


def test_damaged_record_is_found(prompted: Artifact, tmp_path: Path) -> None:
    artifact = with_engine(prompted, tmp_path, Target.TENSORRT)
    name = "engines/tensorrt/sm_90.json"
    artifact = add_evidence(artifact, name, '{"target": "tensorrt"}', prompts=())
    with pytest.raises(DamagedError, match=r"expected version in .*engines/tensorrt/sm_90\.json,"):
        require_engine(artifact, HOPPER)


def test_record_that_names_its_fusion_report_as_before_is_read(
    prompted: Artifact, tmp_path: Path
) -> None:
    artifact = with_engine(prompted, tmp_path, Target.TENSORRT, fusion_report=("not fused",))
    name = "engines/tensorrt/sm_90.json"
    values = json.loads((artifact.folder / name).read_text())
    values["shortcomings"] = values.pop("fusion_report")
    artifact = add_evidence(artifact, name, json.dumps(values), prompts=())
    assert require_engine(artifact, HOPPER).record.fusion_report == ("not fused",)


def test_engine_of_another_version_is_refused(prompted: Artifact, tmp_path: Path) -> None:
    artifact = with_engine(prompted, tmp_path, Target.TENSORRT, version="11.3.0")
    with pytest.raises(InputError, match=r"expected tensorrt 11\.3\.0, .* found 11\.4\.0; build"):
        Opened(artifact)


def test_engine_that_does_not_load_is_refused_in_the_librarys_words(
    prompted: Artifact, tmp_path: Path
) -> None:
    artifact = with_engine(prompted, tmp_path, Target.TENSORRT)
    with pytest.raises(DamagedError, match="found: magic tag does not match; build it again"):
        Opened(artifact, refuses="magic tag does not match")


def test_without_a_driver_the_library_is_not_touched(
    prompted: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*_: object) -> None:
        raise AssertionError("TensorRT can end a process that has no driver")

    monkeypatch.setattr(trt, "find_device", lambda: None)
    monkeypatch.setattr("importlib.import_module", touched)
    with pytest.raises(InputError, match="CUDA device and driver for `backend` trt, found none"):
        open_encoder(prompted.folder, backend="trt")
    with pytest.raises(InputError, match="expected `device` cuda for `backend` trt, found cpu"):
        open_encoder(prompted.folder, backend="trt", device="cpu")


@pytest.mark.parametrize(
    ("gpu", "device", "chosen"),
    [
        (None, "auto", "ort"),
        (Device((8, 9), "13.0"), "auto", "ort"),
        (HOPPER, "cpu", "ort"),
        (HOPPER, "auto", "trt"),
    ],
    ids=["no GPU", "engine for another", "asked for the CPU", "engine for this GPU"],
)
def test_auto_takes_the_engine_that_is_for_this_gpu(
    prompted: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpu: Device | None,
    device: str,
    chosen: str,
) -> None:
    artifact = with_engine(prompted, tmp_path, Target.TENSORRT)
    opened = Opened(artifact)
    for module in (backends, trt):
        monkeypatch.setattr(module, "find_device", lambda: gpu)
    monkeypatch.setattr(trt, "load_library", lambda target: opened.trt)
    monkeypatch.setattr(trt, "load_cuda", lambda: opened.cuda)
    encoder = open_encoder(artifact.folder, device=device)
    assert encoder.backend.name == chosen
    if chosen == "trt":
        assert encoder.limits == BatchLimits(TOKEN_BUDGET, pairs=None, single=None)


def test_an_engine_runs_without_pytorch_and_onnx(tmp_path: Path) -> None:
    code = (
        "import sys, anna_export.backends, anna_export.backends.trt, anna_export.artifact.prefixes;"
        "print(sorted({'torch', 'onnx_ir', 'onnxruntime', 'tensorrt'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_added_engine_leaves_the_artifact_whole(prompted: Artifact, tmp_path: Path) -> None:
    artifact = with_engine(prompted, tmp_path, Target.TENSORRT)
    assert open_artifact(artifact.folder, check=True).manifest == artifact.manifest
