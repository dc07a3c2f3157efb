"""An artifact becomes engines: graph → TensorRT's form → plan → evidence beside the artifact."""

import hashlib
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import onnx_ir as ir

from anna_export import quantise
from anna_export.artifact.evidence import add_evidence
from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import ENGINE_FOLDER
from anna_export.choices import Target
from anna_export.engines.builder import Options, build_plan, require_kernels
from anna_export.engines.capability import Capability, choose
from anna_export.engines.compatibility import require_compatible
from anna_export.engines.fingerprint import graph_fingerprint
from anna_export.engines.layers import fusion_report, summary
from anna_export.engines.loading import load_library, load_plugins
from anna_export.engines.profiles import choose_profiles
from anna_export.engines.record import BuildRecord, EngineRecord
from anna_export.engines.refit import refit_plan, require_refittable
from anna_export.engines.request import EngineRequest
from anna_export.engines.stored import ENGINE, StoredEngine, record_name, require_engine
from anna_export.errors import InputError
from anna_export.files.disk import require_disk
from anna_export.graph.names import CANONICAL
from anna_export.graph.passes.gpu_attention import InputsToGive, WithoutPrefix
from anna_export.graph.passes.merge_linear import MergeLinear
from anna_export.graph.stored_graph import read_graph
from anna_export.graph.tensors import IR_DTYPES
from anna_export.machine.gpu import find_device
from anna_export.progress import Stage
from anna_export.quantise.calibration import read_calibration
from anna_export.spec import ENGINE_PRECISIONS, Precision

_GRAPH, _DATA = "engine.onnx", "engine.data"


@dataclass(frozen=True, slots=True)
class Built:
    """An artifact with its new engines: by file name, what is stored about each."""

    artifact: Artifact
    records: Mapping[str, EngineRecord]


@dataclass(frozen=True, slots=True)
class _EnginePlan:
    """One engine that no file holds yet."""

    capability: Capability
    content: memoryview
    build: BuildRecord


def build(artifact: Artifact, request: EngineRequest, stage: Stage) -> Built:
    """Build an artifact's engines and list them in its manifest; what fails leaves none behind.

    Raises:
        InputError: If the precision or the GPU is none that the target builds for.
        ExtraError: If the target is not installed.
        DamagedError: If it does not take the graph.
    """
    manifest = artifact.manifest
    chosen = require_buildable(manifest.precision, request)
    fp8_modules = _fp8_modules(artifact)
    bf16 = quantise.scheme_of(manifest).compute_dtype is Precision.BF16
    for capability in chosen:
        require_kernels(capability, min(fp8_modules, default=None), bf16)
    trt = load_library(request.target)
    model = gpu_form(artifact)
    fingerprint = graph_fingerprint(model)
    source = _source(artifact, request, fingerprint)
    if source is None:
        _register_plugins(trt, request.target, chosen[0])
    # the graph with joined weights, and the engine
    require_disk(artifact.folder, 2 * artifact.size_bytes)
    built = Built(artifact, {})
    with tempfile.TemporaryDirectory(dir=artifact.folder, prefix=".build-") as folder:
        graph = Path(folder, _GRAPH)
        _write(model, graph, stage)
        if source is not None:
            plans = _refit(trt, graph, source, chosen, stage)
        else:
            every = [_options(artifact, request, capability) for capability in chosen]
            plans = _build(trt, graph, artifact, every, fp8_modules, fingerprint, stage)
        started = time.perf_counter()
        for plan in plans:
            seconds = round(time.perf_counter() - started, 1)
            built = _store(built, plan, seconds)
            started = time.perf_counter()
    return built


def _write(model: ir.Model, graph: Path, stage: Stage) -> None:
    with stage("write graph", "tensors") as progress:
        ir.save(
            model,
            graph,
            external_data=_DATA,
            callback=lambda _, done: progress(done.index + 1, done.total) if progress else None,
        )


def _source(artifact: Artifact, request: EngineRequest, fingerprint: str) -> StoredEngine | None:
    """Return the engine to refit; None where one is to be built."""
    device = find_device()
    if request.refit_from is None or device is None:
        return None
    source = open_artifact(request.refit_from)
    stored = require_engine(source, device)
    require_refittable(source, stored, artifact.manifest.spec, fingerprint)
    return stored


def _refit(
    trt: ModuleType, graph: Path, source: StoredEngine, chosen: Sequence[Capability], stage: Stage
) -> Iterator[_EnginePlan]:
    fields = source.record.model_dump(include=set(BuildRecord.model_fields))
    for capability in chosen:
        with stage(f"refit for {capability}", "engines"):
            content = refit_plan(trt, source, graph)
        yield _EnginePlan(capability, content, BuildRecord.model_validate(fields))


def _register_plugins(trt: ModuleType, target: Target, capability: Capability) -> None:
    if (plugins := load_plugins(target)) is not None:
        from anna_export.engines.plugin import register_pooling  # it needs Triton

        register_pooling(trt, plugins, capability)


def _options(artifact: Artifact, request: EngineRequest, capability: Capability) -> Options:
    manifest = artifact.manifest
    prefixes = [len(entry.ids) for entry in manifest.prefixes.values()]
    profiles = choose_profiles(manifest.framing.max_tokens, prefixes)
    return Options(request, capability, tuple(profiles))


def _build(
    trt: ModuleType,
    graph: Path,
    artifact: Artifact,
    every: Sequence[Options],
    fp8_modules: Collection[str],
    fingerprint: str,
    stage: Stage,
) -> Iterator[_EnginePlan]:
    manifest = artifact.manifest
    for options in every:
        request, capability = options.request, options.capability
        with stage(f"build for {capability}", "steps") as progress:
            built_plan = build_plan(trt, graph, manifest.spec, options, progress)
        report = ["the library logged no layers"]
        if built_plan.layers:
            report = fusion_report(built_plan.layers, manifest.spec, fp8_modules)
        record = BuildRecord(
            target=request.target,
            version=trt.__version__,
            compute_capability=str(capability),
            structure_sha256=fingerprint,
            prefix=bool(manifest.prefixes),
            portable=request.portable,
            refittable=request.refittable,
            profiles=options.profiles,
            layers=summary(built_plan.layers),
            fusion_report=tuple(report),
        )
        yield _EnginePlan(capability, built_plan.content, record)


def require_buildable(precision: Precision, request: EngineRequest) -> tuple[Capability, ...]:
    """Return the GPUs to build for, before there is anything to build.

    Raises:
        InputError: If the precision or a GPU is none that the target builds for.
        ExtraError: If the target is not installed.
    """
    if precision not in ENGINE_PRECISIONS:
        raise InputError(
            f"expected an artifact in {', '.join(ENGINE_PRECISIONS)} for {request.target}, found "
            f"{precision}; export it in bf16 or fp8 for a GPU"
        )
    chosen = choose(request.capabilities, request.target, find_device())
    load_library(request.target)
    return chosen


def gpu_form(artifact: Artifact) -> ir.Model:
    """Return the canonical graph as TensorRT fuses it best, with a prefix if any is baked."""
    model = read_graph(artifact, CANONICAL)
    require_compatible(model, IR_DTYPES[quantise.scheme_of(artifact.manifest).compute_dtype])
    prefix = () if artifact.manifest.prefixes else (WithoutPrefix(),)
    return ir.passes.Sequential(*prefix, InputsToGive(), MergeLinear())(model).model


def _fp8_modules(artifact: Artifact) -> Collection[str]:
    """Return the linear modules that are to multiply in FP8."""
    calibration = read_calibration(artifact)
    if artifact.manifest.precision is not Precision.FP8 or calibration is None:
        return ()
    return calibration.quantised_modules(artifact.manifest.spec)


def _store(built: Built, plan: _EnginePlan, seconds: float) -> Built:
    manifest, device = built.artifact.manifest, find_device()
    record = EngineRecord(
        **plan.build.model_dump(),
        driver=device.driver if device is not None else None,
        artifact_id=manifest.artifact_id,
        onnx_sha256=manifest.files[manifest.graphs[CANONICAL]].sha256,
        seconds=seconds,
        sha256=hashlib.sha256(plan.content).hexdigest(),
        size_bytes=plan.content.nbytes,
    )
    name = f"{ENGINE_FOLDER}/{record.target}/{plan.capability.name}{ENGINE}"
    artifact = add_evidence(built.artifact, name, plan.content, prompts=())
    text = record.model_dump_json(indent=1) + "\n"
    artifact = add_evidence(artifact, record_name(name), text, prompts=())
    return Built(artifact, {**built.records, name: record})
