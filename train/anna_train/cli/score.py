"""anna-train score."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anna_export.console import commands, output
from anna_export.errors import InputError
from anna_train.cli.teacher_options import teacher_options, teacher_settings

if TYPE_CHECKING:
    from anna_train.mining.score import ScoreReport


class _Weights(click.ParamType):
    """Three numbers with commas between them."""

    name = "A,B,C"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Return the numbers.

        Raises:
            InputError: If they are not three.
        """
        if isinstance(value, tuple):
            return value
        try:
            first, second, third = map(float, value.split(","))
        except ValueError:
            raise InputError(f"expected --weights as in 1,0,0, found {value!r}") from None
        return first, second, third


@click.command(
    "score",
    cls=commands.Verb,
    example="anna-train score mined.jsonl --out scored.jsonl",
)
@click.argument("rows", type=commands.path)
@click.option("--out", type=commands.path, required=True, help="File of rows to write (JSONL).")
@teacher_options
@click.option(
    "--entropy-low",
    default=0.2,
    show_default=True,
    help="Smallest mean entropy of the soft labels, as a share of that of uniform labels.",
)
@click.option(
    "--entropy-high",
    default=0.6,
    show_default=True,
    help="Largest mean entropy, on the same scale.",
)
@click.option(
    "--weights",
    type=_Weights(),
    default="1,0,0",
    show_default=True,
    help="Weights of reranker, dense retriever and BM25, whose scores are standardised over the "
    "file.",
)
@click.option("--again", is_flag=True, help="Score rows that have scores already, too.")
@commands.overwrite_option
@output.json_option
def command(
    rows: Path,
    out: Path,
    entropy_low: float,
    entropy_high: float,
    weights: tuple[float, float, float],
    again: bool,
    overwrite: bool,
    as_json: bool,
    **teacher: Any,
) -> None:
    """Add soft labels to training rows: a teacher's logits, divided by one temperature.

    ROWS is a JSONL file of training rows with negatives. score writes logit / temperature, whose
    softmax is the label in any trainer, and "temperature", which gives the logit back. It uses the
    scores that mine wrote, unless --again is set.
    """
    from anna_train.mining.score import score
    from anna_train.mining.settings import ScoreSettings

    settings = ScoreSettings(
        teacher=teacher_settings(**teacher),
        entropy_low=entropy_low,
        entropy_high=entropy_high,
        weights=weights,
        again=again,
    )
    report = score(rows, out, settings, overwrite=overwrite, stage=output.stage)
    if as_json:
        output.print_json(asdict(report) | {"out": str(out)})
        return
    output.print_rows(_report_rows(report))


def _report_rows(report: "ScoreReport") -> dict[str, str]:
    rows = {
        "rows": f"{report.out}, {report.rows:,}; {report.without_negatives:,} of them without "
        "negatives, and so without a label",
        "scores": f"of {report.reused:,} rows as they were"
        if report.reused
        else f"of {report.rows - report.without_negatives:,} rows, new",
        "temperature": f"{report.temperature:.5g}",
        "entropy": f"{report.entropy_before:.3f} before, {report.entropy_after:.3f} after; "
        "1 is that of equal labels",
        "outranked": f"in {report.outranked:.1%} of labelled rows a negative scores above a "
        "positive",
    }
    if report.resumed:
        rows["resumed"] = f"{report.resumed:,} rows were done by an earlier run"
    if report.restarted:
        rows["restarted"] = "what an earlier run with other settings or files had done was dropped"
    return rows
