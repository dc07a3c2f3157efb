"""A new adapter in an old engine, and timings kept between builds; over a simulated library."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.choices import Target
from anna_export.engines import build as building
from anna_export.engines.build import build, gpu_form
from anna_export.engines.capability import Capability
from anna_export.engines.fingerprint import graph_fingerprint
from anna_export.engines.record import EngineRecord
from anna_export.engines.request import EngineRequest
from anna_export.engines.timing_cache import TimingCache
from anna_export.errors import AnnaError, DamagedError, InputError
from anna_export.machine.gpu import Device
from anna_export.progress import no_stage
from anna_export.spec import Precision
from tests.support.types import MakeAdapter, MakeArtifact, MakeModel

HOPPER = Device((9, 0), "13.0")
NAME = "engines/tensorrt/sm_90.engine"


class Library:
    """Stands for TensorRT: an engine is the weights that its graph's file says."""

    __version__ = "11.4.0"

    class ILogger:
        """What receives messages."""

        ERROR, INTERNAL_ERROR = "error", "internal"

    def __init__(self, missing: tuple[str, ...] = ()) -> None:
        self.missing = missing
        self.OnnxParserRefitter = lambda refitter, log: SimpleNamespace(
            refit_from_file=lambda graph: self._take(refitter, graph), num_errors=0
        )

    def _take(self, refitter: Any, graph: str) -> bool:
        assert Path(graph).is_file()
        weights = ir.load(graph).graph.initializers
        refitter.engine.weights = {
            name: value.const_value.tobytes()
            for name, value in weights.items()
            if value.const_value is not None
        }
        return True

    def Runtime(self, log: Any) -> SimpleNamespace:
        engine = SimpleNamespace(weights={})
        engine.serialize = lambda: repr(sorted(engine.weights.items())).encode()
        return SimpleNamespace(deserialize_cuda_engine=lambda content: engine)

    def Refitter(self, engine: Any, log: Any) -> SimpleNamespace:
        return SimpleNamespace(
            engine=engine,
            get_missing_weights=lambda: list(self.missing),
            refit_cuda_engine=lambda: True,
        )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    simulated = Library()
    monkeypatch.setattr(building, "find_device", lambda: HOPPER)
    monkeypatch.setattr(building, "load_library", lambda target: simulated)
    monkeypatch.setattr(building, "load_plugins", lambda target: None)
    return simulated


@pytest.fixture
def artifact_of(
    base: Path, make_model: MakeModel, make_adapter: MakeAdapter, tmp_path: Path
) -> Callable[..., Artifact]:
    """Exports base and an adapter of a seed."""
    from anna_export.console.output import stage
    from anna_export.export.pipeline import export
    from anna_export.export.recipe import Recipe
    from anna_export.quantise.options import storage

    def make(
        seed: int,
        precision: Precision = Precision.BF16,
        tokens: int = 64,
        rope_theta: float | None = None,
    ) -> Artifact:
        model = base
        if rope_theta is not None:
            rope = {"rope_theta": rope_theta, "rope_type": "default"}
            model = make_model(rope_parameters=rope)
        adapter = make_adapter(model, seed=seed)
        out = tmp_path / f"{seed}-{precision}-{tokens}"
        return export(
            Recipe(model, adapter, out, storage(precision), tokens, verify=False), stage
        ).artifact

    return make


def built(artifact: Artifact, monkeypatch: pytest.MonkeyPatch, **request: Any) -> Artifact:
    """Return an artifact with an engine that the library is said to have built."""
    plan = SimpleNamespace(content=memoryview(b"built"), layers=[])
    with monkeypatch.context() as patch:
        patch.setattr(building, "build_plan", lambda *_: plan)
        return build(artifact, EngineRequest(Target.TENSORRT, **request), no_stage).artifact


def record_of(artifact: Artifact) -> EngineRecord:
    path = (artifact.folder / NAME).with_suffix(".json")
    return EngineRecord.model_validate_json(path.read_text())


def test_refitted_engine_holds_the_new_adapters_weights(
    library: Library, artifact_of: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = built(artifact_of(1), monkeypatch, refittable=True)
    new = artifact_of(2)
    request = EngineRequest(Target.TENSORRT, refit_from=old.folder)
    records = build(new, request, no_stage).records
    assert list(records) == [NAME]
    record, source = records[NAME], record_of(old)
    assert record.refittable and record.profiles == source.profiles
    assert record.artifact_id == new.manifest.artifact_id != source.artifact_id
    assert record.structure_sha256 == source.structure_sha256
    content = (new.folder / NAME).read_bytes()
    weights = {
        name: value.const_value.tobytes()
        for name, value in gpu_form(new).graph.initializers.items()
        if value.const_value is not None
    }
    assert content == repr(sorted(weights.items())).encode()
    assert NAME in open_artifact(new.folder, check=True).manifest.evidence


@pytest.mark.parametrize(
    ("refittable", "other", "message"),
    [
        (False, {}, "expected an engine built with `refittable`, found"),
        (True, {"tokens": 32}, "from a graph that differs only in its weights, found another base"),
        (True, {"precision": Precision.FP16}, "from a graph that differs only in its weights"),
        (True, {"rope_theta": 5e5}, "from a graph that differs only in its weights"),
    ],
    ids=["not refittable", "longest sequence", "precision", "rotary base"],
)
def test_engine_that_cannot_take_the_weights_is_refused(
    library: Library,
    artifact_of: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
    refittable: bool,
    other: dict[str, Any],
    message: str,
) -> None:
    old = built(artifact_of(1), monkeypatch, refittable=refittable)
    new = artifact_of(2, **other)
    with pytest.raises(InputError, match=message):
        build(new, EngineRequest(Target.TENSORRT, refit_from=old.folder), no_stage)
    assert not (new.folder / "engines").exists() and not list(new.folder.glob(".build-*"))


def test_weight_that_was_not_given_is_named(
    library: Library, artifact_of: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = built(artifact_of(1), monkeypatch, refittable=True)
    library.missing = ("layers.0.mlp.up_proj.weight",)
    request = EngineRequest(Target.TENSORRT, refit_from=old.folder)
    with pytest.raises(
        DamagedError, match=r"no weights for layers\.0\.mlp\.up_proj\.weight; leave"
    ):
        build(artifact_of(2), request, no_stage)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": Target.TENSORRT_RTX}, "`refit_from` with `target` tensorrt, found one with"),
        ({"target": Target.TENSORRT, "portable": True}, "`refit_from` without `portable` and"),
    ],
)
def test_options_that_exclude_one_another_are_refused(options: Any, message: str) -> None:
    with pytest.raises(AnnaError, match=message):
        EngineRequest(refit_from=Path("artifact"), **options)


def test_fingerprint_is_that_of_the_graph_and_not_of_its_weights(
    make_model: MakeModel, make_artifact: MakeArtifact
) -> None:
    first, second, longer, other = (
        graph_fingerprint(gpu_form(artifact))
        for artifact in (
            make_artifact(make_model(seed=0), Precision.BF16),
            make_artifact(make_model(seed=1), Precision.BF16),
            make_artifact(make_model(seed=0), Precision.BF16, max_tokens=32),
            make_artifact(make_model(seed=0, rms_norm_eps=1e-6), Precision.BF16),
        )
    )
    assert first == second
    assert len({first, longer, other}) == 3


# -- timings --


class Config:
    """Stands for a builder's configuration, on a GPU whose timings begin with its name."""

    def __init__(self, gpu: bytes) -> None:
        self.gpu, self.cache = gpu, b""

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache and not cache.startswith(self.gpu):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> SimpleNamespace:
        return SimpleNamespace(serialize=lambda: self.cache)


def test_timings_are_kept_for_one_version_on_one_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timings = TimingCache(Library, Capability(9, 0))  # type: ignore[arg-type]
    first = Config(b"H200")
    timings.load(first)
    assert first.cache == b""
    first.cache = b"H200: 3 us"
    timings.save(first)
    again = Config(b"H200")
    timings.load(again)
    assert again.cache == b"H200: 3 us"
    # another GPU of the same capability, another capability
    other = Config(b"H100")
    timings.load(other)
    assert other.cache == b""
    TimingCache(Library, Capability(10, 0)).load(again)  # type: ignore[arg-type]
    assert again.cache == b""
