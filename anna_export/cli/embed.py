"""anna-export embed."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from anna_export.choices import LOCAL
from anna_export.cli import options
from anna_export.console import commands, output

if TYPE_CHECKING:
    from anna_export.artifact.folder import Artifact
    from anna_export.embed.file import Embedder


@click.command(
    "embed",
    cls=commands.Verb,
    example="anna-export embed artifact texts.jsonl --out vectors.parquet --prompt query",
)
@options.artifact_argument
@click.argument("texts", type=commands.path)
@click.option(
    "--out",
    type=commands.path,
    required=True,
    help="A .parquet file (columns id, embedding) or a .npy file; rows in input order.",
)
@click.option(
    "--prompt",
    help="Name of one of the model's prompts, put in front of every text; empty for none. "
    "Default: the model's default prompt, if it has one.",
)
@click.option(
    "--field", default="text", show_default=True, help="Key of the text in a .jsonl object."
)
@options.backend_option
@options.device_option
@click.option(
    "--ray",
    "address",
    is_flag=False,
    flag_value=LOCAL,
    metavar="[ADDRESS]",
    help="Spread the texts over a Ray cluster, or, without an address, over one that is started on "
    "this machine. The artifact must be in the same folder on every node.",
)
@click.option(
    "--ray-actors",
    "actors",
    type=click.IntRange(min=1),
    help="Encoders in the cluster. Default: one a node.",
)
@click.option(
    "--ray-gpus",
    "gpus",
    type=click.FloatRange(min=0),
    default=0,
    show_default=True,
    help="GPUs that Ray reserves for each encoder.",
)
@commands.overwrite_option
@output.json_option
def command(
    artifact: Path,
    texts: Path,
    out: Path,
    prompt: str | None,
    field: str,
    backend: str,
    device: str,
    address: str | None,
    actors: int | None,
    gpus: float,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Embed a file of texts; an interrupted run resumes.

    TEXTS is a .txt file with one text a line, or a .jsonl file with one object a line; an object's
    "id" is kept. To resume, give the same command again.
    """
    from anna_export.artifact.folder import open_artifact
    from anna_export.embed.file import embed_file, require_output
    from anna_export.files.text_file import read_texts

    require_output(out, overwrite=overwrite)
    opened = open_artifact(artifact)
    opened.manifest.prompts.find(prompt)
    source = read_texts(texts, field)
    with (
        _open_embedder(opened, backend, device, address, actors, gpus) as embedder,
        output.stage("embed", "texts") as progress,
    ):
        embedded = embed_file(
            embedder,
            opened.manifest.artifact_id,
            source,
            out,
            prompt=prompt,
            overwrite=overwrite,
            progress=progress,
        )
    count, resumed, dim = embedded.texts, embedded.resumed, embedder.dim
    if as_json:
        output.print_json({"out": str(out), "texts": count, "resumed": resumed, "dim": dim})
        return
    rows = {"vectors": str(out), "shape": f"{count:,} texts x {dim} dimensions, float32"}
    if resumed:
        rows["resumed"] = f"{resumed:,} texts were done by an earlier run"
    output.print_rows(rows)


@contextmanager
def _open_embedder(
    artifact: "Artifact",
    backend: str,
    device: str,
    address: str | None,
    actors: int | None,
    gpus: float,
) -> Iterator["Embedder"]:
    """Give this process as an embedder, or actors on a Ray cluster where an address is named."""
    from anna_export.backends import load_encoder, open_encoder
    from anna_export.embed.file import LocalEmbedder
    from anna_export.embed.on_ray import connect_ray

    if address is None:
        yield LocalEmbedder(load_encoder(artifact, backend=backend, device=device))
        return
    opening = partial(open_encoder, artifact.folder.resolve(), backend=backend, device=device)
    with connect_ray(opening, artifact.manifest.prompts, address, actors, gpus) as embedder:
        yield embedder
