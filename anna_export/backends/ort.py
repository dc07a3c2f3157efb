"""ONNX Runtime: the CPU provider, and CUDA's where it is installed."""

import os
from typing import Final

import numpy as np
import onnx_ir as ir

from anna_export import quantise
from anna_export.artifact.folder import Artifact
from anna_export.errors import DamagedError, ExtraError, InputError
from anna_export.graph.names import (
    ATTENTION_MASK,
    CANONICAL,
    CPU,
    INPUT_IDS,
    PREFIX_KEYS,
    PREFIX_VALUES,
    PROMPT_TOKENS,
)
from anna_export.graph.stored_graph import read_graph, weights_path
from anna_export.machine.devices import pick_device
from anna_export.machine.hardware import multiplies_int8_exactly
from anna_export.machine.memory import require_memory
from anna_export.quantise.footprint import forecast
from anna_export.quantise.scheme import Scheme
from anna_export.spec import EmbeddingSpec, Precision
from anna_export.text.batch import TokenBatch
from anna_export.text.batching import BatchLimits

try:
    import onnxruntime
except ImportError:
    raise ExtraError(
        "expected onnxruntime, found none; install anna-export[cpu], or [cuda] for a GPU"
    ) from None

_WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"
_CUDA: Final = "CUDAExecutionProvider"
# As many scores as one text of 4,096 tokens has without a prefix; texts together keep a GPU busy.
_CUDA_LIMITS: Final = BatchLimits(pairs=1 << 24, single=None)


class OrtBackend:
    """An artifact loaded in ONNX Runtime."""

    name = "ort"

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        spec: EmbeddingSpec,
        compute_label: str,
        limits: BatchLimits,
    ) -> None:
        self._session = session
        self.limits = limits
        self.spec = spec
        self.compute_label = compute_label

    def run(self, batch: TokenBatch) -> np.ndarray:
        """Return (B, spec.embedding_dim) float32 rows."""
        if not len(batch.ids):  # GroupQueryAttention divides by the batch size
            return np.empty((0, self.spec.embedding_dim), dtype=np.float32)
        feeds = {INPUT_IDS: batch.ids, ATTENTION_MASK: batch.mask}
        if batch.prefix is not None:
            feeds |= {PREFIX_KEYS: batch.prefix.keys, PREFIX_VALUES: batch.prefix.values}
        if self.spec.head.leaves_out_prompt and batch.prompt_tokens is not None:
            feeds[PROMPT_TOKENS] = batch.prompt_tokens
        (vectors,) = self._session.run(None, feeds)
        return vectors


def open_backend(
    artifact: Artifact, *, device: str = "auto", threads: int | None = None
) -> OrtBackend:
    """Load an artifact's graph for a device.

    Raises:
        InputError: If there is no such device here, or no thread to compute in.
        SpaceError: If it does not fit in memory.
        DamagedError: If ONNX Runtime does not accept the graph.
    """
    manifest = artifact.manifest
    scheme = quantise.scheme_of(manifest)
    hindrance = _hindrance_on_cuda(scheme)
    device = pick_device(device, has_cuda=hindrance is None, without=hindrance or "")
    if threads is not None and threads < 1:
        raise InputError(f"expected at least 1 thread, found {threads}")
    options = _options(scheme, threads)
    if device == "cuda":
        onnxruntime.preload_dlls()  # CUDA's libraries, where pip has put them
        target, provider = CANONICAL, _CUDA
        compute_label = f"{manifest.precision} on CUDA"
        settings = {"use_tf32": "0"}  # else fp32 is not what it computes in
        limits = _CUDA_LIMITS
    else:
        multiply_exactly(options)
        needed = forecast(manifest.spec, manifest.framing, scheme)
        require_memory(needed.serve_bytes, f"{artifact.folder} in ONNX Runtime")
        target, provider, settings = CPU, "CPUExecutionProvider", {}
        compute_label, limits = scheme.cpu_compute_label, BatchLimits()
    try:
        graph = _graph_bytes(artifact, target, options)
        session = onnxruntime.InferenceSession(graph, options, providers=[(provider, settings)])
    except DamagedError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise DamagedError(
            f"expected a graph that ONNX Runtime {onnxruntime.__version__} loads, found: "
            f"{str(error).splitlines()[0]} ({artifact.graph(target)})"
        ) from None
    # where CUDA's libraries or its device are missing, ONNX Runtime would go on without a word
    if provider not in session.get_providers():
        raise InputError(
            "expected a CUDA device that ONNX Runtime can use, found none; choose the device cpu"
        )
    return OrtBackend(session, manifest.spec, compute_label, limits)


def _options(scheme: Scheme, threads: int | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    # a plan of one shape's allocations is kept beside the memory that other shapes have taken
    options.enable_mem_pattern = False
    # the arena finds no room for widened weights where the last run's were, and grows
    options.enable_cpu_mem_arena = not scheme.dequantises
    return options


def _graph_bytes(artifact: Artifact, target: str, options: onnxruntime.SessionOptions) -> bytes:
    """Return a graph for a session, and have that session map the weights at their real path.

    Given the graph's own path, ONNX Runtime refuses weights behind a link
    (findings/onnxruntime-linked-weights.sh).
    """
    model, weights = ir.to_proto(read_graph(artifact, target)), weights_path(artifact)
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights.parent))
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = weights.name
    content: bytes = model.SerializeToString()
    return content


def multiply_exactly(options: onnxruntime.SessionOptions) -> None:
    """Have 8-bit products added in 32 bits, on processors that would add them in 16 too."""
    if not multiplies_int8_exactly():
        # unsigned weights: exact, and slower
        options.add_session_config_entry("session.x64quantprecision", "1")


def _hindrance_on_cuda(scheme: Scheme) -> str | None:
    """Say why a scheme's graph cannot run on CUDA here, if it cannot."""
    if scheme.precision in (Precision.INT8, Precision.INT4):
        return (
            f"expected `device` cpu, found cuda: {scheme.precision} is for CPUs; export it in fp8 "
            "or bf16 for a GPU"
        )
    if scheme.precision is Precision.FP8 and scheme.compute_dtype is Precision.BF16:
        return (
            "expected `device` cpu, found cuda: ONNX Runtime's CUDA provider rounds no bf16 to "
            "FP8; export it with `high_precision` fp16 for it"
        )
    if _CUDA not in onnxruntime.get_available_providers():
        return "expected ONNX Runtime with CUDA, found the CPU build; install anna-export[cuda]"
    return None
