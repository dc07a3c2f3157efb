"""An artifact becomes engines: graph → TensorRT's form → plan → evidence beside the artifact."""

import hashlib
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from anna_export import quantise
from anna_export.artifact.evidence import add_evidence
from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import ENGINE_FOLDER
from anna_export.engines.builder import Options, Plan, build_plan, require_kernels
from anna_export.engines.capability import Capability, choose
from anna_export.engines.layers import shortcomings, summary
from anna_export.engines.loading import load_library, load_plugins
from anna_export.engines.profiles import choose_profiles
from anna_export.engines.record import EngineRecord
from anna_export.engines.refit import refit_plan, require_refittable
from anna_export.engines.request import EngineRequest
from anna_export.engines.stored import ENGINE, StoredEngine, record_name, require_engine
from anna_export.engines.structure import structure_sha256
from anna_export.engines.takeable import require_takeable
from anna_export.errors import InputError
from anna_export.files.disk import require_disk
from anna_export.graph.names import CANONICAL
from anna_export.graph.passes.gpu_attention import PrefixToGive, WithoutPrefix
from anna_export.graph.passes.merge_linear import MergeLinear
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


def build(artifact: Artifact, request: EngineRequest, stage: Stage) -> Built:
    """Build an artifact's engines and list them in its manifest; what fails leaves none behind.

    Raises:
        InputError: If the precision or the GPU is none that the target builds for.
        ExtraError: If the target is not installed.
        DamagedError: If it does not take the graph.
    """
    manifest = artifact.manifest
    chosen = require_buildable(manifest.precision, request)
    device = find_device()
    fp8_modules = _fp8_modules(artifact)
    bf16 = quantise.scheme_of(manifest).arithmetic is Precision.BF16
    for capability in chosen:
        require_kernels(capability, min(fp8_modules, default=None), bf16)
    trt = load_library(request.target)
    model = gpu_form(artifact)
    structure = structure_sha256(model)
    source = _source(artifact, request, structure)
    if source is None and (plugins := load_plugins(request.target)) is not None:
        from anna_export.engines.plugin import register_pooling  # it needs Triton

        register_pooling(trt, plugins, chosen[0])
    profiles = choose_profiles(
        manifest.framing.max_tokens, [len(entry.ids) for entry in manifest.prefixes.values()]
    )
    # the graph with joined weights, and the engine
    require_disk(artifact.folder, 2 * artifact.size_bytes)
    built = Built(artifact, {})
    with tempfile.TemporaryDirectory(dir=artifact.folder, prefix=".build-") as folder:
        graph = Path(folder, _GRAPH)
        with stage("write graph", "tensors") as progress:
            ir.save(
                model,
                graph,
                external_data=_DATA,
                callback=lambda _, done: progress(done.index + 1, done.total) if progress else None,
            )
        for capability in chosen:
            started = time.perf_counter()
            if source is not None:
                with stage(f"refit for {capability}", "engines") as progress:
                    content = refit_plan(trt, source, graph)
                record = source.record
            else:
                options = Options(request, capability, tuple(profiles))
                with stage(f"build for {capability}", "steps") as progress:
                    plan = build_plan(trt, graph, manifest.spec, options, progress)
                content = plan.content
                record = _record(artifact, options, plan, trt.__version__, structure, fp8_modules)
            record = record.model_copy(
                update={
                    "driver": device.driver if device is not None else None,
                    "artifact_id": manifest.artifact_id,
                    "onnx_sha256": manifest.files[manifest.graphs[CANONICAL]].sha256,
                    "seconds": round(time.perf_counter() - started, 1),
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size_bytes": content.nbytes,
                }
            )
            built = _store(built, capability, content, record)
    return built


def _source(artifact: Artifact, request: EngineRequest, structure: str) -> StoredEngine | None:
    """Return the engine to refit, if one is to be."""
    device = find_device()
    if request.refit_from is None or device is None:
        return None
    source = open_artifact(request.refit_from)
    stored = require_engine(source, device)
    require_refittable(source, stored, artifact.manifest.spec, structure)
    return stored


def _record(
    artifact: Artifact,
    options: Options,
    plan: Plan,
    version: str,
    structure: str,
    fp8_modules: Collection[str],
) -> EngineRecord:
    """Return what is known of an engine but for what its file and this machine are."""
    request = options.request
    missing = (
        shortcomings(plan.layers, artifact.manifest.spec, fp8_modules)
        if plan.layers
        else ["the library told nothing of its layers"]
    )
    return EngineRecord(
        target=request.target,
        version=version,
        compute_capability=str(options.capability),
        driver=None,
        artifact_id="",
        onnx_sha256="",
        structure_sha256=structure,
        prefix=bool(artifact.manifest.prefixes),
        portable=request.portable,
        refittable=request.refittable,
        profiles=options.profiles,
        layers=summary(plan.layers),
        shortcomings=tuple(missing),
        seconds=0,
        sha256="",
        size_bytes=0,
    )


def require_buildable(precision: Precision, request: EngineRequest) -> tuple[Capability, ...]:
    """Return the GPUs to build for, before there is anything to build.

    Raises:
        InputError: If the precision or a GPU is none that the target builds for.
        ExtraError: If the target is not installed.
    """
    if precision not in ENGINE_PRECISIONS:
        raise InputError(
            f"expected an artifact in {', '.join(ENGINE_PRECISIONS)} for {request.target}, found "
            f"{precision}; export it with --bf16 or --fp8 for a GPU"
        )
    chosen = choose(request.capabilities, request.target, find_device())
    load_library(request.target)
    return chosen


def gpu_form(artifact: Artifact) -> ir.Model:
    """Return the canonical graph as TensorRT fuses it best, with a prefix if any is baked."""
    model = ir.load(artifact.graph(CANONICAL))
    require_takeable(model, IR_DTYPES[quantise.scheme_of(artifact.manifest).arithmetic])
    prefix = PrefixToGive() if artifact.manifest.prefixes else WithoutPrefix()
    for rewrite in (prefix, MergeLinear()):
        rewrite(model)
    return model


def _fp8_modules(artifact: Artifact) -> Collection[str]:
    """Return the linear modules that are to multiply in FP8."""
    calibration = read_calibration(artifact)
    if artifact.manifest.precision is not Precision.FP8 or calibration is None:
        return ()
    return calibration.quantised_modules(artifact.manifest.spec)


def _store(
    built: Built, capability: Capability, content: memoryview, record: EngineRecord
) -> Built:
    name = f"{ENGINE_FOLDER}/{record.target}/{capability.name}{ENGINE}"
    artifact = add_evidence(built.artifact, name, content, prompts=())
    text = record.model_dump_json(indent=1) + "\n"
    artifact = add_evidence(artifact, record_name(name), text, prompts=())
    return Built(artifact, {**built.records, name: record})
