"""anna-export embed."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click

from anna_export.choices import LOCAL
from anna_export.cli import options
from anna_export.console import commands, output


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
    from anna_export.backends import load_encoder, open_encoder
    from anna_export.embed.file import Embedder, LocalEmbedder, embed_file, require_output
    from anna_export.embed.on_ray import connect_ray
    from anna_export.files.text_file import read_texts

    require_output(out, overwrite=overwrite)
    opened = open_artifact(artifact)
    prompts = opened.manifest.prompts
    prompts.find(prompt)
    source = read_texts(texts, field)
    with ExitStack() as stack:
        embedder: Embedder
        if address is None:
            embedder = LocalEmbedder(load_encoder(opened, backend=backend, device=device))
        else:
            opening = partial(open_encoder, artifact.resolve(), backend=backend, device=device)
            cluster = connect_ray(opening, prompts, address, actors, gpus)
            embedder = stack.enter_context(cluster)
        embedded = embed_file(
            embedder,
            opened.manifest.artifact_id,
            source,
            out,
            prompt=prompt,
            overwrite=overwrite,
            progress=stack.enter_context(output.stage("embed", "texts")),
        )
    count, resumed, dim = embedded.texts, embedded.resumed, embedder.dim
    if as_json:
        output.print_json({"out": str(out), "texts": count, "resumed": resumed, "dim": dim})
        return
    rows = {"vectors": str(out), "shape": f"{count:,} texts x {dim} dimensions, float32"}
    if resumed:
        rows["resumed"] = f"{resumed:,} texts were done by an earlier run"
    output.print_rows(rows)
