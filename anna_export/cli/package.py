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
    "--compute-capability",
    "engine",
    metavar="X.Y",
    help="Serve the artifact's TensorRT engine for a GPU of this compute capability, such as 9.0, "
    "instead of its graph in ONNX Runtime.",
)
@click.option(
    "--max-batch-size",
    "batch",
    type=int,
    default=32,
    show_default=True,
    help="Most texts that Triton computes in one batch.",
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
    """Write an artifact as a model repository of Triton: tokenizer, model, an ensemble of both.

    Experimental: no Triton server has run such a repository yet.

    The repository holds one ensemble for each prompt, NAME.PROMPT, and NAME for no prompt; each
    takes `text` and returns `sentence_embedding`. Triton computes the whole prompt with every text.
    The container needs numpy and tokenizers.
    """
    from anna_export.artifact.folder import open_artifact
    from anna_export.engines.capability import read_capability
    from anna_export.files.hub_cache import folder_name
    from anna_export.integrations.triton.write import Package, write_repository

    opened = open_artifact(artifact)
    gpu = read_capability(engine).name if engine is not None else None
    package = Package(name or folder_name(artifact), device, gpu, batch)
    names = write_repository(opened, package, triton, overwrite=overwrite)
    if as_json:
        output.print_json({"repository": str(triton), "ensembles": names})
        return
    output.print_rows({"repository": str(triton)})
    output.print_table(
        ["model", "prompt"], [[model, prompt or "none"] for model, prompt in names.items()]
    )
