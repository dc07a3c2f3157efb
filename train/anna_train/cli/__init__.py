"""The command line: `anna-train VERB`."""

import signal
import sys
from collections.abc import Sequence

import click

from anna_export.console import commands
from anna_export.console.running import run_group
from anna_train.cli import check, convert, mine, plan, recipe, score, tune


class _Verbs(commands.Verbs):
    """Ends its help in the way from raw text to an adapter."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, unwrapped, so that they can be copied."""
        with formatter.section("Examples"):
            formatter.write("".join(f"  {line}\n" for line in _EXAMPLES))


_EXAMPLES = (
    "anna-train convert data.parquet --out rows.jsonl",
    "anna-train check rows.jsonl",
    "anna-train mine rows.jsonl --out mined.jsonl",
    "anna-train score mined.jsonl --out scored.jsonl",
    "anna-train tune --config recipe.yaml --out adapter",
)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(package_name="anna-export")
def cli() -> None:
    """Train a LoRA adapter for a text-embedding model, from raw text on.

    Exit codes: 0 yes; 1 the answer is no (the data has errors, plans differ, or a loss is not
    finite); 2 wrong use or bad input; 70 a bug; 130 interrupted.
    """


_COMMANDS: tuple[click.Command, ...] = (
    convert.command,
    check.command,
    mine.command,
    score.command,
    plan.command,
    tune.command,
    recipe.command,
)
for command in _COMMANDS:
    cli.add_command(command)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # what stops a container or a job is cleaned up after as Ctrl-C is
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_group(cli, "anna-train", args)
