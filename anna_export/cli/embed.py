"""anna-export embed."""

from pathlib import Path

import click

from anna_export.cli import options, shown


@click.command(
    "embed",
    cls=options.Verb,
    example="anna-export embed artifact texts.jsonl --out vectors.parquet --prompt query",
)
@options.artifact_argument
@click.argument("texts", type=options.path)
@click.option(
    "--out",
    type=options.path,
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
@options.overwrite_option
@shown.json_option
def command(
    artifact: Path,
    texts: Path,
    out: Path,
    prompt: str | None,
    field: str,
    backend: str,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Embed a file of texts, and go on where an interrupted run was.

    TEXTS is a .txt file with one text a line, or a .jsonl file with one object a line; an object's
    "id" is kept. Give the same command again to go on.
    """
    from anna_export.artifact import open_artifact
    from anna_export.backends import load_encoder
    from anna_export.embed import embed_file, require_output
    from anna_export.text_file import read_texts

    require_output(out, overwrite=overwrite)
    opened = open_artifact(artifact)
    opened.manifest.prompts.find(prompt)
    source = read_texts(texts, field)
    encoder = load_encoder(opened, backend=backend, device=device)
    with shown.stage("embed", "texts") as progress:
        embedded = embed_file(
            encoder,
            opened.manifest.artifact_id,
            source,
            out,
            prompt=prompt,
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
    rows = {
        "vectors": str(out),
        "shape": f"{embedded.texts:,} texts x {encoder.dim} dimensions, float32",
    }
    if embedded.resumed:
        rows["resumed"] = f"{embedded.resumed:,} texts were done by an earlier run"
    shown.print_rows(rows)
