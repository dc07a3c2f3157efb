"""anna-export plan."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from anna_export.cli import options
from anna_export.console import commands, output

if TYPE_CHECKING:
    from anna_export.export.forecast import PrecisionForecast


@click.command(
    "plan",
    cls=commands.Verb,
    example="anna-export plan --model base --adapter lora --out artifact",
)
@options.model_option
@options.adapter_option()
@click.option(
    "--out",
    type=commands.path,
    default=Path("."),
    show_default=True,
    help="Where the artifact would go; plan measures that disk.",
)
@options.max_tokens_option
@options.eos_option
@output.json_option
def command(
    model: Path,
    adapter: tuple[Path, ...],
    out: Path,
    max_tokens: int | None,
    eos: bool | None,
    as_json: bool,
) -> None:
    """Forecast disk, memory and time of an export in every precision, before any work.

    It says what will not fit; the time is that of the export without its parity check. It reads
    only the headers of the weight files, writes and removes 64 MB to time the disk, and multiplies
    a few matrices to time the processor.
    """
    from anna_export.export.forecast import Machine, forecast_all
    from anna_export.text.framing import read_framing
    from anna_export.weights.checkpoint import Checkpoint

    spec = Checkpoint.open(model, adapter).spec
    framing = read_framing(model, spec, max_tokens, adapter=adapter, eos=eos)
    machine = Machine.probe(out)
    forecasts = forecast_all(spec, framing, machine)
    if as_json:
        machine_bytes = {
            "disk_free_bytes": machine.disk_free_bytes,
            "memory_bytes": machine.memory_bytes,
        }
        output.print_json({**machine_bytes, "plans": [entry.to_json() for entry in forecasts]})
        return
    output.print_line(
        f"{output.size(machine.disk_free_bytes)} of disk free, "
        f"{output.size(machine.memory_bytes)} of memory available"
    )
    for entry in forecasts:
        output.print_line("")
        output.print_rows(_rows(entry))


def _rows(forecast: "PrecisionForecast") -> dict[str, str]:
    from anna_export.machine.memory import fits_in_memory

    needed = forecast.needed
    rows = {
        "precision": str(needed.precision),
        "artifact": output.size(needed.artifact_bytes) + _unfit(forecast.fits_disk, "the disk"),
        "export": f"{output.size(needed.export_bytes)} of memory, "
        f"{_about(forecast.export_seconds)}" + _unfit(forecast.fits_export, "memory"),
        "embedding": f"{output.size(needed.serve_bytes)} of memory (ONNX Runtime, CPU)"
        + _unfit(forecast.fits_serve, "memory"),
        "proof": str(forecast.proof),
    }
    if engine := forecast.engine:
        rows["engine"] = (
            f"{output.size(engine.memory_bytes)} of memory, {output.size(engine.disk_bytes)} of "
            f"disk, about {engine.seconds:.0f} s (TensorRT-RTX)"
            + _unfit(fits_in_memory(engine.memory_bytes), "memory")
        )
    return rows


def _about(seconds: float | None) -> str:
    return "time unknown: no test could be written" if seconds is None else f"about {seconds:.0f} s"


def _unfit(fits: bool, where: str) -> str:
    return "" if fits else f"  DOES NOT FIT {where}"
