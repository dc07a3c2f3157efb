"""anna-train convert."""

from pathlib import Path

import click

from anna_export.console import commands, output

# anna_train.data.readers.Format, which loads what --help need not
_FORMATS = ("tevatron", "sentence-transformers", "flagembedding")


@click.command(
    "convert",
    cls=commands.Verb,
    example="anna-train convert triplets.parquet --out rows.jsonl",
)
@click.argument("source", metavar="IN", type=commands.path)
@click.option("--out", type=commands.path, required=True, help="JSONL file to make.")
@click.option(
    "--from",
    "of",
    type=click.Choice(_FORMATS),
    help="Whose data it is. Default: what its first record's fields say.",
)
@click.option(
    "--to",
    type=click.Choice(_FORMATS),
    default="flagembedding",
    show_default=True,
    help="Whose data to make; flagembedding is what the other verbs read.",
)
@click.option(
    "--positive-score",
    type=float,
    help="Least score that makes a pair's second text a positive of the first, on the scores' own "
    "scale; it is a negative below. Needed for pairs with a score.",
)
@commands.overwrite_option
@output.json_option
def command(
    source: Path,
    out: Path,
    of: str | None,
    to: str,
    positive_score: float | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Turn other trainers' data into training rows, or rows into theirs.

    IN is JSONL, CSV or Parquet. sentence-transformers records have the columns anchor (or query,
    question), positive (or answer) and negative, negative_1 and so on, or sentence1, sentence2 and
    score (or label); those that share the anchor become one row. A Tevatron passage is its title, a
    space and its text.
    """
    from anna_train.data.convert import Conversion, convert
    from anna_train.data.readers import Format

    conversion = Conversion(source, out, Format(of) if of else None, Format(to), positive_score)
    with output.stage("convert", "bytes") as progress:
        done = convert(conversion, overwrite=overwrite, progress=progress)
    if as_json:
        output.print_json(
            {
                "file": str(out),
                "from": str(done.of),
                "records": done.records,
                "rows": done.rows,
                "lines": done.lines,
                "without_positive": done.without_positive,
                "left_out": dict(done.left_out),
            }
        )
        return
    printed = {
        "read": f"{done.records:,} records of {done.of}",
        "written": f"{done.lines:,} lines of {done.rows:,} rows to {out}",
    }
    if done.without_positive:
        printed["no positive"] = f"{done.without_positive:,} anchors left out"
    if done.left_out:
        lost = ", ".join(f"{name} of {count:,} rows" for name, count in done.left_out.items())
        printed["left out"] = f"{lost}: {to} has no column for them"
    output.print_rows(printed)
