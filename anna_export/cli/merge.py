"""anna-export merge."""

from pathlib import Path

import click

from anna_export.cli import options
from anna_export.console import commands, output


@click.command(
    "merge",
    cls=commands.Verb,
    example="anna-export merge --model base --adapter lora --out merged",
)
@options.model_option
@options.adapter_option(required=True)
@click.option("--out", type=commands.path, required=True, help="Model folder to make.")
@options.eos_option
@commands.overwrite_option
@output.json_option
def command(
    model: Path,
    adapter: tuple[Path, ...],
    out: Path,
    eos: bool | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write base and adapters as one ordinary Hugging Face folder.

    merge adds in fp32 and rounds once to the base's own type; it holds at most three tensors in
    memory. The folder is the decoder without the language head, which embedding does not use.
    """
    from anna_export.weights.merge import write_merged

    with output.stage("merge", "bytes") as progress:
        merged = write_merged(model, adapter, out, overwrite=overwrite, eos=eos, progress=progress)
    if as_json:
        output.print_json(
            {
                "folder": str(out),
                "tensors": merged.tensors,
                "changed": merged.changed,
                "size_bytes": merged.size_bytes,
            }
        )
        return
    output.print_rows(
        {
            "model": str(out),
            "weights": f"{merged.tensors}, {merged.changed} changed by adapters",
            "size": output.size(merged.size_bytes),
        }
    )
