"""Refitting: an engine takes the weights of another adapter, and nothing is built again."""

from pathlib import Path
from types import ModuleType

from anna_export.artifact.folder import Artifact
from anna_export.engines.loading import load_engine, logger_of
from anna_export.engines.stored import StoredEngine
from anna_export.errors import DamagedError, InputError
from anna_export.spec import EmbeddingSpec


def require_refittable(
    source: Artifact, stored: StoredEngine, spec: EmbeddingSpec, fingerprint: str
) -> None:
    """Refuse an engine that cannot take the weights of a graph.

    Args:
        source: The artifact that the engine is of.
        stored: The engine.
        spec: The numbers of the model whose weights it is to take.
        fingerprint: That of its graph.

    Raises:
        InputError: If it was not built refittable, or from a graph that differs in more than
            its weights.
    """
    if not stored.record.refittable:
        raise InputError(
            f"expected an engine built with `refittable`, found {stored.path} built without; leave "
            "`refit_from` out to build anew"
        )
    if source.manifest.spec != spec or stored.record.structure_sha256 != fingerprint:
        raise InputError(
            f"expected {stored.path} built from a graph that differs only in its weights, found "
            "another base, precision, longest sequence or set of FP8 layers, or baked prompts in "
            "only one of both; leave `refit_from` out to build anew"
        )


def refit_plan(trt: ModuleType, stored: StoredEngine, graph: Path) -> memoryview:
    """Return an engine with a graph's weights in place of its own.

    Args:
        trt: TensorRT, as `load_library` gives it.
        stored: The engine, which `require_refittable` accepts for that graph.
        graph: The ONNX file, its weights beside it.

    Raises:
        DamagedError: If the library does not load the engine, or take every weight.
    """
    log = logger_of(trt)
    engine = load_engine(trt, stored, log)
    refitter = trt.Refitter(engine, log)
    refit_parser = trt.OnnxParserRefitter(refitter, log)
    taken = refit_parser.refit_from_file(str(graph))
    if not (taken and not refitter.get_missing_weights() and refitter.refit_cuda_engine()):
        errors = [refit_parser.get_error(index).desc() for index in range(refit_parser.num_errors)]
        missing = [f"no weights for {name}" for name in refitter.get_missing_weights()[:2]]
        raise DamagedError(
            f"expected {stored.path} to take the weights of another adapter, found "
            f"{'; '.join([*errors, *missing, *log.errors[-2:]])}; leave `refit_from` out to "
            "build anew"
        )
    return memoryview(engine.serialize())
