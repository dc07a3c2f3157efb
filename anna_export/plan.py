"""What an export will need, before any work: disk, memory, time, and what will not fit."""

import math
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from anna_export.spec import EmbeddingSpec, Precision
from anna_export.tokenise import TokenContract

# Measured on 2 cores at two sizes (benchmarks/results, scale): see fits_in_memory for their use.
_LIBRARIES_BYTES: Final = 320 << 20
# Graphs, tokenizer and manifest; and page alignment of every tensor.
_SMALL_FILES_BYTES: Final = 8 << 20
_PAGE_BYTES: Final = 4096
_PROBE_BYTES: Final = 64 << 20
_START_SECONDS: Final = 3.0
_MERGE_BYTES_PER_SECOND: Final = 400e6


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one precision needs.

    Args:
        artifact_bytes: The artifact on disk.
        disk_bytes: Free disk needed while it is made.
        export_bytes: Peak anonymous memory of merging and writing.
        serve_bytes: Memory of the artifact loaded in ONNX Runtime on a CPU.
        reference_bytes: Memory of the PyTorch reference in fp32.
    """

    precision: Precision
    artifact_bytes: int
    disk_bytes: int
    export_bytes: int
    serve_bytes: int
    reference_bytes: int


def forecast(spec: EmbeddingSpec, contract: TokenContract, precision: Precision) -> Forecast:
    """Forecast one precision from the model's numbers alone."""
    item = precision.item_bytes
    tables = contract.max_tokens * spec.head_dim * item
    shapes = spec.weight_shapes().values()
    weights = spec.parameters * item + tables
    artifact = weights + len(shapes) * _PAGE_BYTES // 2 + _SMALL_FILES_BYTES
    largest = max(math.prod(shape) for shape in shapes)
    # one tensor being made (as stored and as merged), one waiting, one being written
    export = _LIBRARIES_BYTES + largest * 2 * (4 + 3 * item)
    # the CPU provider computes in fp32; a narrow type is held beside its widened copy
    matrices = spec.parameters - spec.vocab_size * spec.dim
    serve = (
        _LIBRARIES_BYTES + matrices * 4 + (weights if item < 4 else spec.vocab_size * spec.dim * 4)
    )
    return Forecast(
        precision=precision,
        artifact_bytes=artifact,
        disk_bytes=artifact,
        export_bytes=export,
        serve_bytes=serve,
        reference_bytes=_LIBRARIES_BYTES + spec.parameters * 4,
    )


def available_memory_bytes() -> int:
    """Return what this process may still take: the machine's, its cgroup's, its own limit."""
    limits = [psutil.virtual_memory().available]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / name
        if path.exists() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text) - psutil.Process().memory_info().rss)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - psutil.Process().memory_info().vms)
    return max(0, min(limits))


def fits_in_memory(needed_bytes: int) -> bool:
    """Say whether this much fits, with a tenth to spare."""
    return needed_bytes * 1.1 < available_memory_bytes()


def disk_free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk an output folder will be on."""
    while not folder.exists():
        folder = folder.parent
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def export_seconds(needed: Forecast, out: Path) -> float:
    """Forecast the time of merging and writing from a short write to the output's disk."""
    folder = out
    while not folder.is_dir():
        folder = folder.parent
    probe = bytes(_PROBE_BYTES)
    started = time.perf_counter()
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(probe)
        file.flush()
        os.fsync(file.fileno())
    write_rate = _PROBE_BYTES / (time.perf_counter() - started)
    return _START_SECONDS + needed.artifact_bytes / min(write_rate, _MERGE_BYTES_PER_SECOND)
