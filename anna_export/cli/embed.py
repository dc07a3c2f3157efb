"""anna-export embed."""

from pathlib import Path

import click

from anna_export.cli import options, shown


@click.command("embed")
@click.argument("artifact", type=options.folder)
@click.argument("texts", type=options.folder)
@click.option(
    "--out",
    type=options.folder,
    required=True,
    help="A .parquet or .npy file; rows in input order.",
)
@click.option("--prompt", help="Name of one of the model's prompts, put in front of every text.")
@click.option(
    "--field", default="text", show_default=True, help="Key of the text in a .jsonl object."
)
@options.device_option
@options.overwrite_option
@shown.json_option
def command(
    artifact: Path,
    texts: Path,
    out: Path,
    prompt: str | None,
    field: str,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    r"""Embed a file of texts: .txt with one a line, or .jsonl with one object a line.

    An interrupted run goes on where it was when the same command is given again.

    \b
    Example:
      anna-export embed artifact texts.jsonl --out vectors.parquet --prompt query
    """
    from anna_export.artifact import open_artifact
    from anna_export.backends import open_encoder
    from anna_export.embed import embed_file

    artifact_id = open_artifact(artifact).manifest.artifact_id
    encoder = open_encoder(artifact, device=device)
    with shown.stage("embed", "texts") as progress:
        embedded = embed_file(
            encoder,
            artifact_id,
            texts,
            out,
            prompt=prompt,
            field=field,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        shown.print_json(
            {
                "out": str(out),
                "texts": embedded.texts,
                "resumed": embedded.resumed,
                "dim": encoder.dim,
            }
        )
        return
    resumed = f", {embedded.resumed} of them by an earlier run" if embedded.resumed else ""
    shown.print_rows(
        {"vectors": str(out), "shape": f"{embedded.texts} x {encoder.dim} float32{resumed}"}
    )
