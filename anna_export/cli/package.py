"""anna-export package."""

from pathlib import Path

import click

from anna_export.cli import options
from anna_export.console import commands, output


@click.command(
    "package", cls=commands.Verb, example="anna-export package artifact --triton model_repository"
)
@options.artifact_argument
@click.option(
    "--triton",
    type=commands.path,
    required=True,
    help="Folder to write: a model repository of Triton Inference Server.",
)
@click.option("--name", help="Name of the model there. Default: the artifact's folder.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where ONNX Runtime computes.",
)
@click.option(
    "--engine",
    metavar="sm_XX",
    help="A TensorRT engine of the artifact, in the place of the graph in ONNX Runtime.",
)
@click.option(
    "--max-batch-size",
    "batch",
    type=int,
    default=32,
    show_default=True,
    help="Most texts that are computed together.",
)
@commands.overwrite_option
@output.json_option
def command(
    artifact: Path,
    triton: Path,
    name: str | None,
    device: str,
    engine: str | None,
    batch: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write an artifact as a model repository: tokenizer, model, and an ensemble of both.

    One ensemble a prompt, NAME.PROMPT, and NAME for none; each takes `text` and gives
    `sentence_embedding`. Whole prompts are computed with every text. The container needs numpy and
    tokenizers.
    """
    from anna_export.artifact.folder import open_artifact
    from anna_export.integrations.triton.write import Package, write_repository

    opened = open_artifact(artifact)
    package = Package(name or artifact.resolve().name, device, engine, batch)
    names = write_repository(opened, package, triton, overwrite=overwrite)
    if as_json:
        output.print_json({"repository": str(triton), "ensembles": names})
        return
    output.print_rows({"repository": str(triton)})
    output.print_table(
        ["model", "prompt"], [[told, prompt or "none"] for told, prompt in names.items()]
    )
