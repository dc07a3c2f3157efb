"""What an export would take in every precision, on this machine, before any work."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from anna_export import quantise
from anna_export.export.timing import (
    export_seconds,
    products_per_second,
    quantise_seconds,
    write_bytes_per_second,
)
from anna_export.files.disk import disk_free_bytes
from anna_export.machine.memory import available_memory_bytes, fits_in_memory
from anna_export.quantise.footprint import (
    ComparisonMethod,
    EngineForecast,
    Forecast,
    engine_forecast,
    forecast,
    method_that_fits,
)
from anna_export.spec import ENGINE_PRECISIONS, EmbeddingSpec, Precision
from anna_export.text.framing import TokenFraming


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is of disk and memory, and how fast they are.

    Args:
        disk_free_bytes: Free on the output's disk.
        memory_bytes: What this process may still take.
        write_rate: The disk's bytes a second; None where nothing can be written.
        product_rate: Operations of fp32 matrix products a second.
    """

    disk_free_bytes: int
    memory_bytes: int
    write_rate: float | None
    product_rate: float

    @classmethod
    def probe(cls, out: Path) -> Self:
        """Measure this machine by a short write on the output's disk and a few products."""
        return cls(
            disk_free_bytes(out),
            available_memory_bytes(),
            write_bytes_per_second(out),
            products_per_second(),
        )


@dataclass(frozen=True, slots=True)
class PrecisionForecast:
    """One precision's needs, and whether they fit.

    Args:
        needed: Bytes of disk and memory.
        export_seconds: Time of calibrating, merging and writing; None where nothing can be written.
        fits_disk: Whether the artifact fits the output's disk.
        fits_export: Whether making it fits in memory.
        fits_serve: Whether the loaded artifact does.
        proof: How it would be compared with its reference.
        engine: What a TensorRT-RTX engine of it takes; None where there are none of it.
    """

    needed: Forecast
    export_seconds: float | None
    fits_disk: bool
    fits_export: bool
    fits_serve: bool
    proof: ComparisonMethod
    engine: EngineForecast | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, those of `needed` beside the others."""
        values = asdict(self)
        return values.pop("needed") | values


def forecast_all(
    spec: EmbeddingSpec, framing: TokenFraming, machine: Machine
) -> list[PrecisionForecast]:
    """Forecast every precision."""
    return [_forecast(precision, spec, framing, machine) for precision in Precision]


def _forecast(
    precision: Precision, spec: EmbeddingSpec, framing: TokenFraming, machine: Machine
) -> PrecisionForecast:
    scheme = quantise.load(precision)
    needed = forecast(spec, framing, scheme)
    seconds = None
    if machine.write_rate:
        per_number = quantise_seconds(scheme)
        seconds = export_seconds(needed, spec, machine.write_rate, machine.product_rate, per_number)
    return PrecisionForecast(
        needed,
        seconds,
        fits_disk=needed.disk_bytes <= machine.disk_free_bytes,
        fits_export=fits_in_memory(needed.export_bytes),
        fits_serve=fits_in_memory(needed.serve_bytes),
        proof=method_that_fits(needed, scheme),
        engine=engine_forecast(spec, scheme) if precision in ENGINE_PRECISIONS else None,
    )
