"""anna-export plan."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from anna_export.cli import options
from anna_export.console import commands, output


@click.command(
    "plan",
    cls=commands.Verb,
    example="anna-export plan --model base --adapter lora --out artifact",
)
@options.model_option
@options.adapter_option
@click.option(
    "--out",
    type=commands.path,
    default=Path("."),
    show_default=True,
    help="Where the artifact would go; plan measures that disk.",
)
@options.max_tokens_option
@output.json_option
def command(
    model: Path, adapter: Path | None, out: Path, max_tokens: int | None, as_json: bool
) -> None:
    """Forecast disk, memory and time of an export in every precision, before any work.

    It says what will not fit; the time is that of the export without its parity check. It reads
    only the headers of the weight files, writes and removes 64 MB to time the disk, and multiplies
    a few matrices to time the processor.
    """
    from anna_export import quantise
    from anna_export.export.timing import (
        export_seconds,
        products_per_second,
        quantise_seconds,
        write_bytes_per_second,
    )
    from anna_export.files.disk import disk_free_bytes
    from anna_export.machine.memory import available_memory_bytes, fits_in_memory
    from anna_export.quantise.footprint import engine_forecast, forecast, method_that_fits
    from anna_export.spec import ENGINE_PRECISIONS, Precision
    from anna_export.text.framing import find_tokenizer, read_framing
    from anna_export.weights.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(model, adapter)
    framing = read_framing(find_tokenizer(model, adapter), checkpoint.spec, max_tokens, model)
    free, memory, rate = disk_free_bytes(out), available_memory_bytes(), write_bytes_per_second(out)
    products = products_per_second()
    plans = []
    for precision in Precision:
        scheme = quantise.load(precision)
        needed = forecast(checkpoint.spec, framing, scheme)
        plans.append(
            asdict(needed)
            | {
                "export_seconds": export_seconds(
                    needed, checkpoint.spec, rate, products, quantise_seconds(scheme)
                )
                if rate
                else None,
                "fits_disk": needed.disk_bytes <= free,
                "fits_export": fits_in_memory(needed.export_bytes),
                "fits_serve": fits_in_memory(needed.serve_bytes),
                "proof": method_that_fits(needed, scheme),
                "engine": asdict(engine_forecast(checkpoint.spec, scheme))
                if precision in ENGINE_PRECISIONS
                else None,
            }
        )
    if as_json:
        output.print_json({"disk_free_bytes": free, "memory_bytes": memory, "plans": plans})
        return
    output.print_line(
        f"{output.size(free)} of disk free, {output.size(memory)} of memory available"
    )
    for plan in plans:
        rows = {
            "precision": str(plan["precision"]),
            "artifact": output.size(plan["artifact_bytes"]) + _unfit(plan["fits_disk"], "the disk"),
            "export": f"{output.size(plan['export_bytes'])} of memory, {_about(plan)}"
            + _unfit(plan["fits_export"], "memory"),
            "embedding": f"{output.size(plan['serve_bytes'])} of memory (ONNX Runtime, CPU)"
            + _unfit(plan["fits_serve"], "memory"),
            "proof": plan["proof"],
        }
        if engine := plan["engine"]:
            rows["engine"] = (
                f"{output.size(engine['memory_bytes'])} of memory, "
                f"{output.size(engine['disk_bytes'])} of disk, about {engine['seconds']:.0f} s "
                "(TensorRT-RTX)" + _unfit(fits_in_memory(engine["memory_bytes"]), "memory")
            )
        output.print_line("")
        output.print_rows(rows)


def _about(plan: dict[str, Any]) -> str:
    seconds = plan["export_seconds"]
    return "time unknown: no test could be written" if seconds is None else f"about {seconds:.0f} s"


def _unfit(fits: bool, where: str) -> str:
    return "" if fits else f"  DOES NOT FIT {where}"
