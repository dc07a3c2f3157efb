"""What one precision takes: bytes on disk, of memory while it is made, and of memory served."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from anna_export.graph.tensors import IR_DTYPES
from anna_export.machine.memory import fits_in_memory
from anna_export.quantise.linear import Layout
from anna_export.quantise.scheme import Scheme
from anna_export.spec import EMBEDDING_WEIGHT, EmbeddingSpec, Precision
from anna_export.text.framing import TokenFraming
from anna_export.weights.checkpoint import TORCH_DTYPES

# Measured on 2 cores at two sizes (benchmarks/results, scale).
_LIBRARIES_BYTES: Final = 320 << 20
# Graphs, tokenizer and manifest; page alignment of every tensor; what a disk keeps for itself.
_SMALL_FILES_BYTES: Final = 3_500_000
_PAGE_BYTES: Final = 4096
# What ONNX Runtime holds of a matrix that it dequantises for every run.
_DEQUANTISED_BYTES: Final = 2.6
_DISK_MARGIN_BYTES: Final = 8 << 20
# Tokens of the texts that an export calibrates on if it is given none.
DEFAULT_TOKENS: Final = 4096
# TensorRT-RTX 1.7 on 2 cores, one and two layers at 7 B shape (benchmarks/results, engines).
_ENGINE_LIBRARIES_BYTES: Final = 256 << 20
_ENGINE_BYTES: Final = 2.15
_ENGINE_START_SECONDS: Final = 5.0
_ENGINE_BYTES_PER_SECOND: Final = 100e6


class ComparisonMethod(StrEnum):
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
    framing: TokenFraming,
    scheme: Scheme,
    tokens: int = DEFAULT_TOKENS,
) -> Forecast:
    """Forecast one precision from the model's numbers alone, no layer kept in a wider one.

    Args:
        spec: The model's numbers.
        framing: How long a sequence may be.
        scheme: The precision.
        tokens: Those that it is calibrated on, if it is.
    """
    tables = framing.max_tokens * spec.head_dim * 4  # cosines and sines, fp32
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
    narrow = scheme.compute_dtype is not Precision.FP32
    return matrices * 4 + (sum(stored.values()) if narrow else stored[EMBEDDING_WEIGHT])


def _stored_bytes(spec: EmbeddingSpec, scheme: Scheme) -> dict[str, int]:
    """Return the bytes of every weight as a scheme stores it."""
    modules, head = spec.linear_modules(), spec.head.weight_shapes()

    def layout(name: str, shape: tuple[int, ...]) -> Layout:
        if scheme.linear is not None and name.removesuffix(".weight") in modules:
            return scheme.linear.layout(*shape)
        if scheme.embedding is not None and name == EMBEDDING_WEIGHT:
            return scheme.embedding.layout(*shape)
        # the head's stay as they are computed in
        dtype = Precision.FP32 if name in head else scheme.compute_dtype
        return {"": (IR_DTYPES[dtype], shape)}

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
    item = TORCH_DTYPES[scheme.compute_dtype].itemsize if scheme.linear is None else 4
    # two tensors are made at once, each held as stored (at most fp32), as turned and as merged, or
    # in four fp32 copies while it is quantised; the embedding is not turned
    number_bytes = item + 8 if scheme.linear is None else 16
    largest = sorted(
        math.prod(shape) * (item + 4 if name == EMBEDDING_WEIGHT else number_bytes)
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


def method_that_fits(needed: Forecast, scheme: Scheme) -> ComparisonMethod:
    """Say how an artifact can be compared with its reference in this memory."""
    if fits_in_memory(needed.reference_bytes + needed.serve_bytes):
        return ComparisonMethod.EVERY_TEXT
    if scheme.served_bytes is not None and fits_in_memory(needed.serve_bytes):
        return ComparisonMethod.FEW_TEXTS
    return ComparisonMethod.WEIGHTS
