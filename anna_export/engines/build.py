"""An artifact becomes engines: graph → TensorRT's form → plan → evidence beside the artifact."""

import json
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from anna_export import quantise
from anna_export.artifact import ENGINE_FOLDER, Artifact, add_evidence
from anna_export.engines.builder import Options, build_plan, require_kernels
from anna_export.engines.capability import Capability, choose
from anna_export.engines.driver import find_device
from anna_export.engines.layers import shortcomings, summary
from anna_export.engines.loading import load_library, load_plugins
from anna_export.engines.profiles import choose_profiles
from anna_export.engines.request import EngineRequest
from anna_export.engines.takeable import require_takeable
from anna_export.errors import InputError
from anna_export.graph.passes.gpu_attention import PrefixToGive, WithoutPrefix
from anna_export.graph.passes.merge_linear import MergeLinear
from anna_export.graph.tensors import IR_DTYPES
from anna_export.progress import Stage
from anna_export.quantise.calibration import read_calibration
from anna_export.quantise.scheme import CANONICAL
from anna_export.spec import ENGINE_PRECISIONS, Precision
from anna_export.staging import require_disk

_GRAPH, _DATA = "engine.onnx", "engine.data"


@dataclass(frozen=True, slots=True)
class Built:
    """An artifact with its new engines: by file name, what is stored about each."""

    artifact: Artifact
    records: dict[str, dict[str, Any]]


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
    profiles = choose_profiles(
        manifest.contract.max_tokens, [len(entry.ids) for entry in manifest.prefixes.values()]
    )
    options = [Options(request, capability, tuple(profiles)) for capability in chosen]
    fp8_modules = _fp8_modules(artifact)
    bf16 = quantise.scheme_of(manifest).arithmetic is Precision.BF16
    for capability in chosen:
        require_kernels(capability, min(fp8_modules, default=None), bf16)
    trt = load_library(request.target)
    plugins = load_plugins(request.target)
    if plugins is not None:
        from anna_export.engines.plugin import register_pooling  # it needs Triton

        register_pooling(trt, plugins, chosen[0])
    # the graph with joined weights, and the engine
    require_disk(artifact.folder, 2 * artifact.size_bytes)
    built = Built(artifact, {})
    with tempfile.TemporaryDirectory(dir=artifact.folder, prefix=".build-") as folder:
        graph = Path(folder, _GRAPH)
        with stage("write graph", "tensors") as progress:
            model = gpu_form(artifact)
            ir.save(
                model,
                graph,
                external_data=_DATA,
                callback=lambda _, done: progress(done.index + 1, done.total) if progress else None,
            )
        for one in options:
            started = time.perf_counter()
            with stage(f"build for {one.capability}", "steps") as progress:
                plan = build_plan(trt, graph, manifest.spec, one, progress)
            record = {
                "target": str(request.target),
                "version": trt.__version__,
                "compute_capability": str(one.capability),
                "driver": device.driver if device is not None else None,
                "onnx_sha256": manifest.files[manifest.graphs[CANONICAL]].sha256,
                "prefix": bool(manifest.prefixes),
                "portable": request.portable,
                "refittable": request.refittable,
                "profiles": [profile.to_json() for profile in one.profiles],
                "layers": summary(plan.layers),
                "shortcomings": shortcomings(plan.layers, manifest.spec, fp8_modules)
                if plan.layers
                else ["the library told nothing of its layers"],
                "seconds": round(time.perf_counter() - started, 1),
            }
            built = _store(built, one, plan.content, record)
    return built


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


def _store(built: Built, options: Options, content: memoryview, record: dict[str, Any]) -> Built:
    place = f"{ENGINE_FOLDER}/{options.request.target}/{options.capability.name}"
    name = f"{place}.engine"
    artifact = add_evidence(built.artifact, name, content, prompts=())
    entry = artifact.manifest.evidence[name]
    record = {**record, "sha256": entry.sha256, "size_bytes": entry.size_bytes}
    text = json.dumps(record, indent=1) + "\n"
    artifact = add_evidence(artifact, f"{place}.json", text, prompts=())
    return Built(artifact, {**built.records, name: record})
