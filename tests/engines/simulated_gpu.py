"""CUDA's runtime and TensorRT's, simulated where there is no GPU, over ONNX Runtime.

As strict as the real ones are said to be: work is done only when the stream is waited for,
addresses must be those of allocated memory, shapes those of the profile; a recording holds what was
set when it was made, and cannot be made before its context has run.
"""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from anna_export.engines.profiles import Profile
from anna_export.graph.names import EMBEDDING
from anna_export.spec import EmbeddingSpec

STREAM = 7
SUCCESS, INVALID, NO_MEMORY = 0, 1, 2
Step = Callable[[], object]


class SimulatedCuda:
    """Stands for cuda.bindings.runtime.

    Args:
        capacity: Bytes of memory.
    """

    cudaStreamNonBlocking = 1
    cudaError_t = SimpleNamespace(cudaSuccess=SUCCESS, cudaErrorMemoryAllocation=NO_MEMORY)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.capacity = capacity
        self.device: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.queued: list[Step] = []
        self.recording: list[Step] | None = None
        self.graphs: list[list[Step]] = []
        self.recorded: dict[int, list[Step]] = {}
        self.launches = 0

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return SUCCESS, f"simulated error {status}".encode()

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return (SUCCESS, STREAM) if flags == self.cudaStreamNonBlocking else (INVALID, 0)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        used = sum(len(block) for block in self.device.values())
        if used + size > self.capacity:
            return NO_MEMORY, 0
        return SUCCESS, _keep(self.device, size)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.device[address]
        return (SUCCESS,)

    def cudaMallocHost(self, size: int) -> tuple[int, int]:
        return SUCCESS, _keep(self.host, size)

    def cudaFreeHost(self, address: int) -> tuple[int]:
        del self.host[address]
        return (SUCCESS,)

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, kind: str, stream: int
    ) -> tuple[int]:
        device = to if kind == "in" else source
        if stream != STREAM or device not in self.device or size > len(self.device[device]):
            return (INVALID,)
        self.submit(lambda: ctypes.memmove(to, source, size))
        return (SUCCESS,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert self.recording is None, "a stream that records cannot be waited for"
        queued, self.queued = self.queued, []
        for step in queued:
            step()
        return (SUCCESS,)

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> tuple[int]:
        assert self.recording is None
        self.recording = []
        return (SUCCESS,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        recorded, self.recording = self.recording, None
        assert recorded is not None
        self.graphs.append(recorded)
        return SUCCESS, recorded

    def cudaGraphInstantiate(self, graph: list[Step], flags: int) -> tuple[int, int]:
        handle = 1 + max(self.recorded, default=0)
        self.recorded[handle] = list(graph)
        return SUCCESS, handle

    def cudaGraphDestroy(self, graph: list[Step]) -> tuple[int]:
        self.graphs = [other for other in self.graphs if other is not graph]
        return (SUCCESS,)

    def cudaGraphExecDestroy(self, handle: int) -> tuple[int]:
        del self.recorded[handle]
        return (SUCCESS,)

    def cudaGraphLaunch(self, handle: int, stream: int) -> tuple[int]:
        self.launches += 1
        self.queued += self.recorded[handle]
        return (SUCCESS,)

    def submit(self, step: Step) -> None:
        """Put a step on the stream, or into what is recorded of it."""
        (self.queued if self.recording is None else self.recording).append(step)

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return memory at an address, which must be allocated and large enough."""
        block = self.device[address]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert size <= len(block), (shape, len(block))
        return np.frombuffer(memoryview(block)[:size], dtype=dtype).reshape(shape)


def _keep(memory: dict[int, Any], size: int) -> int:
    assert size > 0
    block = (ctypes.c_char * size)()
    ctypes.memset(block, 0xA5, size)  # nothing may depend on what was there
    address = ctypes.addressof(block)
    memory[address] = block
    return address


@dataclass
class SimulatedTensorRT:
    """Stands for the library: an engine's file is the name of an ONNX file."""

    cuda: SimulatedCuda
    spec: EmbeddingSpec
    profiles: tuple[Profile, ...]
    __version__: str = "11.4.0"
    contexts: list["Context"] = field(default_factory=list)
    refuses: str = ""  # what is wrong with every engine

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")

    class ILogger:
        """What receives messages."""

        ERROR, INTERNAL_ERROR = "error", "internal"

    def Runtime(self, log: Any) -> SimpleNamespace:
        return SimpleNamespace(deserialize_cuda_engine=lambda content: self._engine(log, content))

    def _engine(self, log: Any, content: Any) -> "Engine | None":
        if self.refuses:
            log.log("error", self.refuses)
            return None
        return Engine(self, Path(bytes(content).decode()))


class Engine:
    """An ICudaEngine."""

    device_memory_size_v2 = 4096

    def __init__(self, trt: SimulatedTensorRT, graph: Path) -> None:
        self.trt = trt
        self.session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig()

    def create_execution_context(self, how: Any) -> "Context":
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert strategy == "user"
        context = Context(self, isinstance(how, RuntimeConfig) and how.cuda_graph_strategy)
        self.trt.contexts.append(context)
        return context


class RuntimeConfig:
    """TensorRT-RTX's IRuntimeConfig."""

    strategy = cuda_graph_strategy = ""

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


class Context:
    """An IExecutionContext."""

    def __init__(self, engine: Engine, records_itself: Any) -> None:
        self.engine, self.records_itself = engine, bool(records_itself)
        self.scratch = 0
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.ran_with: Mapping[str, tuple[int, ...]] | None = None

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        assert len(self.engine.trt.cuda.device[address]) >= size
        self.scratch = address

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return stream == STREAM and index < len(self.engine.trt.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        trt = self.engine.trt
        assert self.profile is not None, "the profile comes before the shapes"
        inputs = frozenset(value.name for value in self.engine.session.get_inputs())
        limits = trt.profiles[self.profile].shapes(trt.spec, inputs)
        if name not in limits:
            return False
        least, _, most = limits[name]
        self.shapes[name] = shape
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda, session = self.engine.trt.cuda, self.engine.session
        inputs = {value.name: value.type for value in session.get_inputs()}
        if stream != STREAM or not self.scratch or set(inputs) - set(self.shapes):
            return False
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        if cuda.recording is not None and self.ran_with != shapes:
            return False
        self.ran_with = shapes

        def step() -> None:
            types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
            feeds = {
                name: cuda.view(addresses[name], shapes[name], types[kind])
                for name, kind in inputs.items()
            }
            (vectors,) = session.run(None, feeds)
            cuda.view(addresses[EMBEDDING], vectors.shape, np.float32)[:] = vectors

        cuda.submit(step)
        return True
