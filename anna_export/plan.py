"""What an export will need, before any work: disk, memory, time, and what will not fit."""

import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import psutil
import torch

from anna_export.checkpoint import TORCH_DTYPES
from anna_export.errors import SpaceError
from anna_export.graph.tensors import IR_DTYPES
from anna_export.quantise.calibration import ActivationStats
from anna_export.quantise.linear import Layout
from anna_export.quantise.scheme import Scheme
from anna_export.spec import EMBEDDING_WEIGHT, EmbeddingSpec, Precision
from anna_export.tokenise import TokenContract

# Measured on 2 cores at two sizes (benchmarks/results, scale).
_LIBRARIES_BYTES: Final = 320 << 20
# Graphs, tokenizer and manifest; page alignment of every tensor; what a disk keeps for itself.
_SMALL_FILES_BYTES: Final = 3_500_000
_PAGE_BYTES: Final = 4096
# What ONNX Runtime holds of a matrix that it dequantises for every run.
_DEQUANTISED_BYTES: Final = 2.6
_DISK_MARGIN_BYTES: Final = 8 << 20
_PROBE_BYTES: Final = 64 << 20
# Tokens of the texts that an export calibrates on if it is given none.
DEFAULT_TOKENS: Final = 4096
# Tokens that pass through a layer: the reference's, a fifth of them as the candidate, and 512 twice
# for its signal-to-noise ratio.
_CALIBRATION_PRODUCTS: Final = 1.2 * DEFAULT_TOKENS + 2 * 512
# What a layer takes over its matrix products: attention, norms, statistics of its inputs.
_CALIBRATION_OVERHEAD: Final = 1.25
_MERGED_NUMBERS_PER_SECOND: Final = 200e6
_PRODUCTS: Final = 12
_QUANTISED: Final = 4
_QUANTISED_ROWS: Final = 512
_START_SECONDS: Final = 3.0
_MERGE_BYTES_PER_SECOND: Final = 400e6
# TensorRT-RTX 1.7 on 2 cores, one and two layers at 7 B shape (benchmarks/results, engines).
_ENGINE_LIBRARIES_BYTES: Final = 256 << 20
_ENGINE_BYTES: Final = 2.15
_ENGINE_START_SECONDS: Final = 5.0
_ENGINE_BYTES_PER_SECOND: Final = 100e6
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


class Proof(StrEnum):
    """How an artifact is compared with its reference."""

    EVERY_TEXT = "every text, by the graph"
    FEW_TEXTS = "a few texts, by the graph; the reference layer by layer"
    WEIGHTS = "weights only, layer by layer"


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


def forecast(
    spec: EmbeddingSpec,
    contract: TokenContract,
    scheme: Scheme,
    tokens: int = DEFAULT_TOKENS,
) -> Forecast:
    """Forecast one precision from the model's numbers alone, no layer kept in a wider one.

    Args:
        spec: The model's numbers.
        contract: How long a sequence may be.
        scheme: The precision.
        tokens: Those that it is calibrated on, if it is.
    """
    tables = contract.max_tokens * spec.head_dim * 4  # cosines and sines, fp32
    stored = _stored_bytes(spec, scheme)
    weights = sum(stored.values()) + tables
    artifact = weights + len(stored) * _PAGE_BYTES // 2 + _SMALL_FILES_BYTES
    return Forecast(
        precision=scheme.precision,
        artifact_bytes=artifact,
        disk_bytes=artifact + _DISK_MARGIN_BYTES + _kept_work_bytes(spec, scheme, tokens),
        export_bytes=_LIBRARIES_BYTES + _export_bytes(spec, scheme, tokens),
        serve_bytes=_LIBRARIES_BYTES + _serve_bytes(spec, scheme, stored),
        reference_bytes=_LIBRARIES_BYTES + spec.parameters * 4,
    )


@dataclass(frozen=True, slots=True)
class EngineForecast:
    """What building one TensorRT-RTX engine needs.

    Args:
        memory_bytes: Peak anonymous memory.
        disk_bytes: Free disk: the graph with joined weights while it is built, and the engine.
        seconds: Time, of writing and building.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float


def engine_forecast(spec: EmbeddingSpec, scheme: Scheme) -> EngineForecast:
    """Forecast an engine of a scheme from the model's numbers alone."""
    weights = sum(_stored_bytes(spec, scheme).values())
    return EngineForecast(
        memory_bytes=_ENGINE_LIBRARIES_BYTES + round(_ENGINE_BYTES * weights),
        disk_bytes=2 * weights,
        seconds=_ENGINE_START_SECONDS + weights / _ENGINE_BYTES_PER_SECOND,
    )


def _kept_work_bytes(spec: EmbeddingSpec, scheme: Scheme, tokens: int) -> int:
    """Return what calibration keeps beside the artifact: hidden states, the candidate's too."""
    return 0 if scheme.linear is None else round(1.2 * tokens) * spec.dim * 4


def _serve_bytes(spec: EmbeddingSpec, scheme: Scheme, stored: Mapping[str, int]) -> int:
    """Return what the artifact takes in ONNX Runtime's CPU provider, beyond what it maps."""
    matrices = spec.parameters - spec.vocab_size * spec.dim
    if scheme.served_bytes is not None:
        # packed copies of the matrices; the embedding stays in the mapped file
        return round(matrices * scheme.served_bytes)
    if scheme.dequantises:
        return round(matrices * _DEQUANTISED_BYTES)
    # the provider computes in fp32; a narrow type is held beside its widened copy
    narrow = scheme.arithmetic is not Precision.FP32
    return matrices * 4 + (sum(stored.values()) if narrow else stored[EMBEDDING_WEIGHT])


def _stored_bytes(spec: EmbeddingSpec, scheme: Scheme) -> dict[str, int]:
    """Return the bytes of every weight as a scheme stores it."""
    modules = spec.linear_modules()

    def layout(name: str, shape: tuple[int, ...]) -> Layout:
        if scheme.linear is not None and name.removesuffix(".weight") in modules:
            return scheme.linear.layout(*shape)
        if scheme.embedding is not None and name == EMBEDDING_WEIGHT:
            return scheme.embedding.layout(*shape)
        return {"": (IR_DTYPES[scheme.arithmetic], shape)}

    return {
        name: sum(
            math.ceil(math.prod(size) * dtype.bitwidth / 8)
            for dtype, size in layout(name, shape).values()
        )
        for name, shape in spec.weight_shapes().items()
    }


def _export_bytes(spec: EmbeddingSpec, scheme: Scheme, tokens: int) -> int:
    """Return the most memory that making a scheme's weights takes, libraries apart."""
    shapes = spec.weight_shapes()
    item = TORCH_DTYPES[scheme.arithmetic].itemsize if scheme.linear is None else 4
    # two tensors are made at once, each held as stored (at most fp32), as turned and as merged, or
    # in four fp32 copies while it is quantised; the embedding is not turned
    held = item + 8 if scheme.linear is None else 16
    largest = sorted(
        math.prod(shape) * (item + 4 if name == EMBEDDING_WEIGHT else held)
        for name, shape in shapes.items()
    )
    writing = sum(largest[-2:])
    if scheme.linear is None:
        return writing
    return max(writing, calibration_bytes(spec, tokens))


def calibration_bytes(spec: EmbeddingSpec, tokens: int) -> int:
    """Return what calibrating takes: one layer, quantised in place, and all tokens' activations."""
    shapes = spec.weight_shapes().items()
    layer = [math.prod(shape) for name, shape in shapes if name.startswith("layers.0.")]
    captured = 2 * spec.dim + spec.q_dim + spec.ffn_dim
    numbers = sum(layer) + 3 * max(layer) + tokens * (captured + spec.ffn_dim)
    return 4 * max(numbers, spec.vocab_size * spec.dim * 2)


def available_memory_bytes() -> int:
    """Return what this process may still take: the machine's, its cgroups', its own limit."""
    limits = [psutil.virtual_memory().available, *_left_by_cgroups()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - psutil.Process().memory_info().vms)
    return max(0, min(limits))


def _left_by_cgroups() -> Iterator[int]:
    """Yield what each cgroup around this process leaves of its limit, page cache not counted."""
    if not _OWN_CGROUPS.exists():
        return
    for line in _OWN_CGROUPS.read_text().splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            root, limit, used = _CGROUPS, "memory.max", "anon"
        elif controllers == "memory":
            root, limit, used = _CGROUPS / "memory", "memory.limit_in_bytes", "total_rss"
        else:
            continue
        # in a container, the upper part of the path may not be there to see
        own = root / place.lstrip("/")
        for folder in (own, *own.parents)[: len(own.parts) - len(root.parts) + 1]:
            path = folder / limit
            if path.exists() and (text := path.read_text().strip()).isdigit():
                stat = dict(
                    row.split() for row in (folder / "memory.stat").read_text().splitlines()
                )
                yield int(text) - int(stat[used])


def fits_in_memory(needed_bytes: int) -> bool:
    """Say whether this much fits, with a tenth to spare."""
    return needed_bytes * 1.1 < available_memory_bytes()


def require_memory(needed_bytes: int, what: str) -> None:
    """Refuse to load what the system would kill this process for.

    Raises:
        SpaceError: Naming what is needed and what is available.
    """
    available = available_memory_bytes()
    if available < needed_bytes:
        raise SpaceError(
            f"expected {needed_bytes / 1e9:.1f} GB of memory for {what}, found "
            f"{available / 1e9:.1f} GB available; close other programs, or use a larger machine"
        )


def proof_that_fits(needed: Forecast, scheme: Scheme) -> Proof:
    """Say how an artifact can be compared with its reference in this memory."""
    if fits_in_memory(needed.reference_bytes + needed.serve_bytes):
        return Proof.EVERY_TEXT
    if scheme.served_bytes is not None and fits_in_memory(needed.serve_bytes):
        return Proof.FEW_TEXTS
    return Proof.WEIGHTS


def write_bytes_per_second(out: Path) -> float | None:
    """Measure the output's disk by a short write that leaves nothing; None if it cannot be made."""
    folder = out.absolute()
    while not folder.is_dir():
        folder = folder.parent
    probe = bytes(_PROBE_BYTES)
    started = time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(probe)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return None
    return _PROBE_BYTES / (time.perf_counter() - started)


def products_per_second() -> float:
    """Measure how many fp32 multiplications and additions matrix products do a second here."""
    rows, columns = 256, 2048
    left, right = torch.randn(rows, columns), torch.randn(columns, columns)
    return 2 * rows * columns**2 / _least_seconds(lambda: left @ right, _PRODUCTS)


def quantise_seconds(scheme: Scheme) -> float:
    """Measure how long a scheme takes to quantise one number of a weight; 0 if it does not."""
    if scheme.linear is None:
        return 0.0
    weight = torch.randn(_QUANTISED_ROWS, 2048)
    stats = ActivationStats(1.0, 1.0, 1.0, torch.ones(2048))
    linear = scheme.linear
    seconds = _least_seconds(lambda: linear.dequantize(linear.quantize(weight, stats)), _QUANTISED)
    return seconds / weight.numel()


def _least_seconds(work: Callable[[], object], times: int) -> float:
    """Return how long work takes once it is warm and nothing else is in the way."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def export_seconds(
    needed: Forecast, spec: EmbeddingSpec, write_rate: float, product_rate: float, per_number: float
) -> float:
    """Forecast the time of calibrating, merging and writing.

    Args:
        needed: What the precision needs.
        spec: The model's numbers.
        write_rate: The disk's, bytes a second.
        product_rate: That of fp32 matrix products, operations a second.
        per_number: Seconds to quantise one; 0 where nothing is quantised.
    """
    writing = needed.artifact_bytes / min(write_rate, _MERGE_BYTES_PER_SECOND)
    if not per_number:
        return _START_SECONDS + writing
    numbers = spec.parameters - spec.vocab_size * spec.dim
    products = 2 * numbers * _CALIBRATION_PRODUCTS * _CALIBRATION_OVERHEAD / product_rate
    # each weight is merged and quantised twice: to calibrate, and to be written
    making = numbers * (2 * per_number + 2 / _MERGED_NUMBERS_PER_SECOND)
    return _START_SECONDS + products + making + needed.artifact_bytes / write_rate
