"""One engine from one ONNX file, by TensorRT 11 or TensorRT-RTX alike."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from anna_export.choices import Target
from anna_export.engines.capability import BF16, FP8, Capability
from anna_export.engines.layers import Layer, read_layers
from anna_export.engines.loading import logger_of
from anna_export.engines.profiles import Profile
from anna_export.engines.request import EngineRequest
from anna_export.engines.timing_cache import TimingCache
from anna_export.errors import DamagedError, InputError
from anna_export.progress import Progress
from anna_export.spec import EmbeddingSpec


@dataclass(frozen=True, slots=True)
class Options:
    """How one engine is built: what was asked, for which GPU, optimised for which shapes."""

    request: EngineRequest
    capability: Capability
    profiles: tuple[Profile, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialised engine and the layers it has."""

    content: memoryview
    layers: list[Layer]


def build_plan(
    trt: ModuleType,
    graph: Path,
    spec: EmbeddingSpec,
    options: Options,
    progress: Progress | None = None,
) -> Plan:
    """Build an engine.

    Args:
        trt: TensorRT or TensorRT-RTX, as `load_library` gives it.
        graph: The ONNX file, its weights beside it.
        spec: The model's numbers.
        options: How.
        progress: Called with the number of its own steps that the library has done.

    Raises:
        DamagedError: If the library does not take the graph; with the node's name.
        InputError: If it finds no way to compute it on that GPU.
    """
    log = logger_of(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = "; ".join(f"{error.node_name()}: {error.desc()}" for error in errors)
        raise DamagedError(
            f"expected a graph that {options.request.target} {trt.__version__} takes, found "
            f"{reasons}"
        )
    config = _configure(trt, builder, options)
    inputs = frozenset(network.get_input(index).name for index in range(network.num_inputs))
    for profile in options.profiles:
        config.add_optimization_profile(_profile(builder, profile, spec, inputs))
    monitor, stopped = _monitor(trt, progress)
    config.progress_monitor = monitor
    timings = None
    if options.request.target is Target.TENSORRT:
        timings = TimingCache(trt, options.capability)
        timings.load(config)
    content = builder.build_serialized_network(network, config)
    if stopped():
        raise KeyboardInterrupt
    if content is None:
        raise InputError(
            f"expected {options.request.target} {trt.__version__} to find kernels for compute "
            f"capability {options.capability}, found: {' '.join(log.errors[-2:])}"
        )
    if timings is not None:
        timings.save(config)
    return Plan(memoryview(content), read_layers(log.messages))


def _configure(trt: ModuleType, builder: Any, options: Options) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.request.memory_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.request.memory_bytes)
    if options.request.target is Target.TENSORRT_RTX:
        config.num_compute_capabilities = 1
        capability = getattr(
            trt.ComputeCapability, options.capability.name.upper().replace("_", "")
        )
        config.set_compute_capability(capability, 0)
        return config
    if options.request.portable:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.request.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    return config


def _profile(builder: Any, profile: Profile, spec: EmbeddingSpec, inputs: frozenset[str]) -> Any:
    optimization = builder.create_optimization_profile()
    for name, shapes in profile.shapes(spec, inputs).items():
        optimization.set_shape(name, *shapes)
    return optimization


def _monitor(trt: ModuleType, progress: Progress | None) -> tuple[Any, Callable[[], bool]]:
    """Return the monitor of the library's steps, and a function: whether Ctrl-C stopped it."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.outer: str | None = None
            self.steps = 0
            self.stopped = False

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.outer, self.steps = phase, steps

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                if progress is not None and phase == self.outer:
                    progress(min(step + 1, self.steps), self.steps)
            except KeyboardInterrupt:
                # raised here it would go through the library's own code
                self.stopped = True
            return not self.stopped

        def phase_finish(self, phase: str) -> None:
            pass

    monitor = Monitor()
    return monitor, lambda: monitor.stopped


def require_kernels(capability: Capability, first_fp8: str | None, computes_in_bf16: bool) -> None:
    """Refuse a GPU that lacks what the graph multiplies in, before any work.

    Args:
        capability: The GPU.
        first_fp8: A layer that is to multiply in FP8; None if there is none.
        computes_in_bf16: Whether anything is computed in bf16.

    Raises:
        InputError: Naming the layer.
    """
    if first_fp8 is not None and capability < FP8:
        raise InputError(
            f"expected compute capability {FP8} or newer for FP8 ({first_fp8}), found "
            f"{capability}; export it in bf16 or fp16 for that GPU"
        )
    if computes_in_bf16 and capability < BF16:
        raise InputError(
            f"expected compute capability {BF16} or newer for bf16, found {capability}; "
            "export it in fp16 for that GPU"
        )
