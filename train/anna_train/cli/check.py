"""anna-train check."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from anna_export.console import commands, output

if TYPE_CHECKING:
    from anna_train.check.doctor import Report

# of a file's measured figures; what is not here is a whole number
_SHARES = ("truncated_share", "rows_with_negative_above")
_DECIMALS = ("teacher_entropy",)


@click.command(
    "check",
    cls=commands.Verb,
    example="anna-train check rows.jsonl --model base --max-tokens 512 --against queries.jsonl",
)
@click.argument("data", type=commands.path, nargs=-1, required=True)
@click.option(
    "--model",
    type=commands.folder,
    help="Folder of the base model; with its tokenizer check also finds special tokens in texts, "
    "and warns if more than 5 % of the texts are truncated.",
)
@click.option(
    "--max-tokens",
    type=int,
    help="Longest sequence of the training in tokens; needs --model. Default: the model's own.",
)
@click.option(
    "--against",
    type=commands.path,
    multiple=True,
    help="File of evaluation texts that must not be trained on: rows, any JSONL (every string of "
    "three words or more is taken), or one text a line. May be given several times.",
)
@output.json_option
@click.pass_context
def command(
    ctx: click.Context,
    data: tuple[Path, ...],
    model: Path | None,
    max_tokens: int | None,
    against: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Find what is wrong with training rows, before they are trained on.

    Errors are malformed rows, empty texts, positives among a row's own negatives, rows without
    negatives where they are needed, and evaluation texts. Warnings are repeated and nearly repeated
    rows and texts, special tokens, truncated texts, and scores that teach nothing or contradict
    the row. Exit code 1 if there are errors, 0 if there are warnings alone.
    """
    from anna_train.check.doctor import CheckRequest, check

    request = CheckRequest(data, model, max_tokens, against)
    with output.stage("check", "rows") as progress:
        report = check(request, keeps_all=as_json, progress=progress)
    if as_json:
        output.print_json(report.as_json())
    else:
        _print(report)
    ctx.exit(1 if report.errors else 0)


def _print(report: "Report") -> None:
    if report.counts:
        table, advice = [], {}
        for rule, count in report.counts.items():
            first = report.first(rule)
            locations = ", ".join(finding.location for finding in first)
            table.append([rule, str(first[0].severity), f"{count:,}", locations])
            advice[rule] = first[0].message
        output.print_table(["finding", "", "count", "first places"], table)
        output.print_line("")
        output.print_rows(advice)
        output.print_line("")
    output.print_rows(
        {str(path): _figures(figures) for path, figures in report.files.items()}
        | {"found": f"{report.errors:,} errors, {report.warnings:,} warnings"}
    )


def _figures(figures: dict[str, float]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {_number(name, value)}" for name, value in figures.items()
    )


def _number(name: str, value: float) -> str:
    if name in _SHARES:
        return f"{value:.1%}"
    return f"{value:.3f}" if name in _DECIMALS else f"{value:,.0f}"
