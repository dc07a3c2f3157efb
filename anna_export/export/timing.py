"""Forecast an export's time from short probes of this machine."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from anna_export.quantise.calibration import ActivationStats
from anna_export.quantise.footprint import DEFAULT_TOKENS, Forecast
from anna_export.quantise.scheme import Scheme
from anna_export.spec import EmbeddingSpec

_PROBE_BYTES: Final = 64 << 20
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
