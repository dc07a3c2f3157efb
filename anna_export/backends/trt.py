"""TensorRT and TensorRT-RTX: an artifact's engine on the GPU it was built for.

Every bucket of small batches has an execution context and a CUDA graph of its own; larger batches
run in their profile's context. All of them share one scratch memory, for they run one at a time.
The keys and values of a prefix stay on the GPU.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np

from anna_export.artifact.folder import Artifact
from anna_export.backends.cuda import Block, Gpu, GpuLaunch, load_cuda
from anna_export.choices import Target
from anna_export.engines.loading import load_engine, load_library, logger_of
from anna_export.engines.profiles import TOKEN_BUDGET, Bucket, Shape, choose_bucket
from anna_export.engines.record import EngineRecord
from anna_export.engines.stored import StoredEngine, require_engine
from anna_export.errors import InputError
from anna_export.graph.names import (
    ATTENTION_MASK,
    EMBEDDING,
    INPUT_IDS,
    PREFIX_KEYS,
    PREFIX_VALUES,
    PROMPT_TOKENS,
)
from anna_export.machine.gpu import find_device
from anna_export.spec import EmbeddingSpec
from anna_export.text.batch import TokenBatch
from anna_export.text.batching import BatchLimits
from anna_export.text.prefix import Prefix

# Attention is one kernel and holds no scores.
LIMITS: Final = BatchLimits(TOKEN_BUDGET, pairs=None, single=None)
# What stays on the GPU of prefixes, and of buckets: those used longest ago go first.
MOST_PREFIX_BYTES: Final = 4 << 30
MOST_LAUNCHES: Final = 256


@dataclass(frozen=True, slots=True)
class _GpuPrefix:
    """A prefix on the GPU: P tokens; 0 where there is none."""

    ids: tuple[int, ...]
    keys: Block
    values: Block
    size_bytes: int


class TrtBackend:
    """An engine loaded on the GPU.

    Args:
        trt: TensorRT or TensorRT-RTX.
        engine: Its ICudaEngine.
        gpu: Where it runs.
        spec: The model's numbers.
        record: What is stored about the engine.
        compute_label: What it computes in, for verdicts.
    """

    name = "trt"

    def __init__(
        self,
        trt: ModuleType,
        engine: Any,
        gpu: Gpu,
        spec: EmbeddingSpec,
        record: EngineRecord,
        compute_label: str,
    ) -> None:
        self.spec = spec
        self.compute_label = compute_label
        self._trt, self._engine, self._gpu, self._record = trt, engine, gpu, record
        profiles = record.profiles
        most_rows = max(profile.batch for profile in profiles)
        most_tokens = max(profile.batch * profile.longest for profile in profiles)
        self._ids, self._mask = (gpu.pinned((most_tokens,), np.int64) for _ in range(2))
        self._vectors = gpu.pinned((most_rows, spec.embedding_dim), np.float32)
        self._prompt_tokens = gpu.pinned((most_rows,), np.int64)
        self._blocks = {
            name: gpu.allocate(array.nbytes)
            for name, array in (
                (INPUT_IDS, self._ids),
                (ATTENTION_MASK, self._mask),
                (EMBEDDING, self._vectors),
                *(((PROMPT_TOKENS, self._prompt_tokens),) * spec.head.leaves_out_prompt),
            )
        }
        self._scratch_bytes = engine.device_memory_size_v2
        self._scratch = gpu.allocate(self._scratch_bytes)
        self._contexts: dict[int, Any] = {}  # by profile
        self._prefixes: OrderedDict[tuple[int, ...], _GpuPrefix] = OrderedDict()
        self._launches: OrderedDict[tuple[tuple[int, ...], Bucket], GpuLaunch] = OrderedDict()
        self._one_at_a_time = threading.Lock()

    def run(self, batch: TokenBatch) -> np.ndarray:
        """Return (B, spec.embedding_dim) float32 rows."""
        vectors = np.empty((len(batch.ids), self.spec.embedding_dim), dtype=np.float32)
        profiles, done = self._record.profiles, 0
        with self._one_at_a_time:
            prefix = self._on_gpu(batch.prefix)
            while done < len(vectors):
                left = len(vectors) - done
                bucket = choose_bucket(profiles, left, batch.width, len(prefix.ids))
                rows = min(bucket.rows, left)
                part = slice(done, done + rows)
                self._write(batch.ids[part], batch.lengths[part], bucket)
                if batch.prompt_tokens is not None:
                    self._prompt_tokens[:rows] = batch.prompt_tokens[part]
                self._launch(bucket, prefix)
                self._gpu.wait()
                vectors[part] = self._vectors[:rows]
                done += rows
        return vectors

    def _write(self, ids: np.ndarray, lengths: np.ndarray, bucket: Bucket) -> None:
        """Put a batch where the GPU copies it from; rows that pad it hold one token."""
        shape = (bucket.rows, bucket.tokens)
        count = bucket.rows * bucket.tokens
        padded, mask = (array[:count].reshape(shape) for array in (self._ids, self._mask))
        padded[:] = 0
        padded[: len(ids), : ids.shape[1]] = ids
        mask[:] = np.arange(bucket.tokens) == 0
        mask[: len(ids)] = np.arange(bucket.tokens) < lengths[:, None]

    def _launch(self, bucket: Bucket, prefix: _GpuPrefix) -> None:
        if not bucket.is_small:
            if bucket.profile not in self._contexts:
                self._contexts[bucket.profile] = self._new_context(bucket)
            self._work(self._contexts[bucket.profile], bucket, prefix)()
            return
        key = prefix.ids, bucket
        if key in self._launches:
            self._launches.move_to_end(key)
            self._launches[key]()
            return
        work = self._work(self._new_context(bucket), bucket, prefix)
        work()
        if self._record.target is Target.TENSORRT:
            # the first run settled what depends on the shape; TensorRT-RTX records by itself
            work = self._gpu.record(work)
        self._launches[key] = work
        if len(self._launches) > MOST_LAUNCHES:
            self._launches.popitem(last=False)

    def _new_context(self, bucket: Bucket) -> Any:
        """Return an execution context for a bucket's profile, in the shared scratch memory."""
        trt, engine = self._trt, self._engine
        user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._record.target is Target.TENSORRT_RTX:
            runtime_config = engine.create_runtime_config()
            runtime_config.set_execution_context_allocation_strategy(user_managed)
            if bucket.is_small:
                runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(runtime_config)
        else:
            context = engine.create_execution_context(user_managed)
        context.set_device_memory(self._scratch.address, self._scratch_bytes)
        _require(context.set_optimization_profile_async(bucket.profile, self._gpu.stream))
        self._gpu.wait()
        return context

    def _work(self, context: Any, bucket: Bucket, prefix: _GpuPrefix) -> GpuLaunch:
        """Return the launch that computes a bucket with a cached prefix, copies included."""
        spec, gpu, blocks = self.spec, self._gpu, self._blocks
        tokens = (bucket.rows, bucket.tokens)
        states = (spec.layers, spec.kv_heads, len(prefix.ids), spec.head_dim)
        shapes: dict[str, Shape] = {INPUT_IDS: tokens, ATTENTION_MASK: tokens}
        addresses = {name: block.address for name, block in blocks.items()}
        if spec.head.leaves_out_prompt:
            shapes[PROMPT_TOKENS] = (bucket.rows,)
        if self._record.prefix:
            shapes |= {PREFIX_KEYS: states, PREFIX_VALUES: states}
            addresses |= {
                PREFIX_KEYS: prefix.keys.address,
                PREFIX_VALUES: prefix.values.address,
            }
        for name, shape in shapes.items():
            _require(context.set_input_shape(name, shape))
        for name, address in addresses.items():
            _require(context.set_tensor_address(name, address))
        count = bucket.rows * bucket.tokens
        ids, mask, vectors = self._ids[:count], self._mask[:count], self._vectors[: bucket.rows]
        counts = self._prompt_tokens[: bucket.rows]

        def work() -> None:
            gpu.copy_in(ids, blocks[INPUT_IDS])
            gpu.copy_in(mask, blocks[ATTENTION_MASK])
            if PROMPT_TOKENS in blocks:
                gpu.copy_in(counts, blocks[PROMPT_TOKENS])
            _require(context.execute_async_v3(gpu.stream))
            gpu.copy_out(blocks[EMBEDDING], vectors)

        return work

    def _on_gpu(self, prefix: Prefix | None) -> _GpuPrefix:
        """Return a prefix on the GPU, copied there when it is first used."""
        ids = prefix.ids if prefix is not None else ()
        if ids in self._prefixes:
            self._prefixes.move_to_end(ids)
            return self._prefixes[ids]
        size_bytes = prefix.keys.nbytes + prefix.values.nbytes if prefix is not None else 0
        while self._prefixes and self._prefix_bytes() + size_bytes > MOST_PREFIX_BYTES:
            oldest, _ = self._prefixes.popitem(last=False)
            # what was recorded reads that memory
            for key in [key for key in self._launches if key[0] == oldest]:
                del self._launches[key]
        empty = np.empty(0, np.float32)
        keys, values = (prefix.keys, prefix.values) if prefix is not None else (empty, empty)
        uploaded = _GpuPrefix(ids, self._gpu.upload(keys), self._gpu.upload(values), size_bytes)
        self._prefixes[ids] = uploaded
        return uploaded

    def _prefix_bytes(self) -> int:
        return sum(prefix.size_bytes for prefix in self._prefixes.values())


def _require(accepted: bool) -> None:
    """Raise where TensorRT refused a call, which only a fault of this package can cause."""
    if not accepted:
        raise RuntimeError("TensorRT refused a call; its own messages say why")


def open_backend(artifact: Artifact, *, device: str = "auto") -> TrtBackend:
    """Load an artifact's engine for this machine's GPU.

    Raises:
        InputError: If there is no driver here, or the engine is another version's.
        MissingError: If there is no engine for this GPU.
        ExtraError: If the library is not installed.
        DamagedError: If the engine is not what was built, or of another graph.
        SpaceError: If it does not fit in the GPU's memory.
    """
    if device == "cpu":
        raise InputError(
            "expected `device` cuda for `backend` trt, found cpu; choose `backend` ort"
        )
    # without a driver, TensorRT ends the process
    gpu = find_device()
    if gpu is None:
        raise InputError(
            "expected a CUDA device and driver for `backend` trt, found none; choose `backend` ort"
        )
    stored = require_engine(artifact, gpu)
    trt = load_library(stored.record.target)
    return load_stored(artifact, stored, trt, load_cuda())


def load_stored(
    artifact: Artifact, stored: StoredEngine, trt: ModuleType, cudart: Any
) -> TrtBackend:
    """Load an engine by these libraries; the rest as `open_backend`."""
    record, manifest = stored.record, artifact.manifest
    label = f"{manifest.precision} in {record} (engine {record.sha256[:12]})"
    engine = load_engine(trt, stored, logger_of(trt))
    return TrtBackend(trt, engine, Gpu(cudart), manifest.spec, record, label)
