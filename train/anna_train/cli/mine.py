"""anna-train mine."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anna_export.console import commands, output
from anna_train.cli.teacher_options import teacher_options, teacher_settings

if TYPE_CHECKING:
    from anna_train.mining.mine import MiningReport


@click.command(
    "mine",
    cls=commands.Verb,
    example="anna-train mine rows.jsonl --out mined.jsonl --negatives 7",
)
@click.argument("rows", type=commands.path)
@click.option("--out", type=commands.path, required=True, help="File of rows to write (JSONL).")
@click.option(
    "--corpus",
    type=commands.path,
    help='More texts to mine from: a .jsonl file with "text", or one text a line.',
)
@teacher_options
@click.option("--negatives", default=7, show_default=True, help="Negatives of a finished row.")
@click.option(
    "--from-rank",
    default=1,
    show_default=True,
    help="First rank to take, among the candidates that the margin allows.",
)
@click.option(
    "--margin",
    "absolute",
    default=0.02,
    show_default=True,
    help="Smallest distance of a negative's score below the lowest positive's, in units of the "
    "score.",
)
@click.option(
    "--relative",
    default=0.05,
    show_default=True,
    help="That distance as a share of that positive's score.",
)
@click.option(
    "--spread",
    default=0.25,
    show_default=True,
    help="That distance in standard deviations of the query's candidate scores. The largest of "
    "the three applies.",
)
@click.option(
    "--sampling",
    type=click.Choice(("top", "random")),
    default="top",
    show_default=True,
    help="Take the best of the allowed candidates (top), or a random sample of them.",
)
@click.option("--replace", is_flag=True, help="Drop the negatives that are in the rows already.")
@commands.overwrite_option
@output.json_option
def command(
    rows: Path,
    out: Path,
    corpus: Path | None,
    negatives: int,
    from_rank: int,
    absolute: float,
    relative: float,
    spread: float,
    sampling: str,
    replace: bool,
    overwrite: bool,
    as_json: bool,
    **teacher: Any,
) -> None:
    """Add hard negatives to training rows; an interrupted run resumes.

    ROWS is a JSONL file of training rows. BM25 and a dense retriever find candidates among all
    positives; mine takes those that score far enough below the query's positives, and writes into
    the row where each came from. To resume, give the same command again.
    """
    from anna_train.mining.margin import AdaptiveMargin
    from anna_train.mining.mine import mine
    from anna_train.mining.settings import MiningSettings, Sampling

    settings = MiningSettings(
        teacher=teacher_settings(**teacher),
        margin=AdaptiveMargin(absolute, relative, spread),
        negatives=negatives,
        from_rank=from_rank,
        sampling=Sampling(sampling),
        corpus=corpus,
        replace=replace,
    )
    report = mine(rows, out, settings, overwrite=overwrite, stage=output.stage)
    if as_json:
        output.print_json(
            {
                "out": str(out),
                **asdict(report.counts),
                "mean_negatives": report.mean_negatives,
                "dropped": report.dropped,
                "first": report.first,
                "texts": report.texts,
                "resumed": report.resumed,
                "restarted": report.restarted,
            }
        )
        return
    output.print_rows(_report_rows(report, negatives))


def _report_rows(report: "MiningReport", negatives: int) -> dict[str, str]:
    counts = report.counts
    dropped = ", ".join(f"{name} {share:.1%}" for name, share in report.dropped.items())
    first = ", ".join(f"{name} {share:.1%}" for name, share in report.first.items())
    rows = {
        "rows": f"{report.out}, {counts.rows:,}",
        "corpus": f"{report.texts:,} texts",
        "negatives": f"{report.mean_negatives:.2f} a row, {counts.mined:,} of them new; "
        f"{counts.short:,} rows have fewer than {negatives}",
        "dropped": f"of {counts.candidates:,} candidates by rule: {dropped}",
        "positive first": f"in rows, by ranking: {first}",
    }
    if report.resumed:
        rows["resumed"] = f"{report.resumed:,} rows were done by an earlier run"
    if report.restarted:
        rows["restarted"] = "what an earlier run with other settings or files had done was dropped"
    return rows
