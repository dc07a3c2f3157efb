"""anna-export build."""

from pathlib import Path

import click

from anna_export.choices import Target
from anna_export.cli import options
from anna_export.console import commands, output


@click.command(
    "build",
    cls=commands.Verb,
    example="anna-export build artifact --target tensorrt-rtx --compute-capability 8.9",
)
@options.artifact_argument
@options.target_option(default=Target.TENSORRT_RTX)
@options.capability_option
@click.option(
    "--portable",
    is_flag=True,
    help="With tensorrt: an engine for every GPU of compute capability 8.0 or newer, which is "
    "slower on each.",
)
@click.option(
    "--refittable",
    is_flag=True,
    help="With tensorrt: weights can be replaced without building again.",
)
@click.option(
    "--refit-from",
    type=commands.folder,
    metavar="ARTIFACT",
    help="With tensorrt: put the weights into the refittable engine of another adapter's artifact, "
    "which takes seconds, instead of building.",
)
@click.option(
    "--memory-gib",
    type=click.FloatRange(min=0, min_open=True),
    help="Most device memory that building may take. Default: all there is.",
)
@output.json_option
def command(
    artifact: Path,
    target: str,
    capabilities: tuple[str, ...],
    portable: bool,
    refittable: bool,
    refit_from: Path | None,
    memory_gib: float | None,
    as_json: bool,
) -> None:
    """Build engines of an artifact in bf16, fp16 or fp8 for one or several GPUs.

    Each engine is stored in the artifact, with the library's version, the GPU and the shapes.
    """
    from anna_export.artifact.folder import open_artifact
    from anna_export.engines.build import build
    from anna_export.engines.capability import read_capability
    from anna_export.engines.request import EngineRequest

    request = EngineRequest(
        Target(target),
        tuple(map(read_capability, capabilities)),
        portable,
        refittable,
        None if memory_gib is None else round(memory_gib * 2**30),
        refit_from,
    )
    built = build(open_artifact(artifact), request, output.stage)
    if as_json:
        engines = {name: record.model_dump(mode="json") for name, record in built.records.items()}
        output.print_json({"engines": engines})
        return
    for name, record in built.records.items():
        output.print_rows(
            {
                "engine": str(artifact / name),
                "by": str(record),
                "size": output.size(record.size_bytes),
                "layers": ", ".join(f"{count} {kind}" for kind, count in record.layers.items()),
                "fusion check": "; ".join(record.fusion_report) or "passed",
                "time": f"{record.seconds} s",
            }
        )
