"""The command line: `anna-export VERB`; without a verb it is `export`."""

import signal
import sys
from collections.abc import Sequence

import click

from anna_export.cli import (
    bench,
    build,
    embed,
    export,
    inspect,
    merge,
    package,
    plan,
    prompts,
    report,
    serve,
    verify,
)
from anna_export.console import commands
from anna_export.console.running import run_group

_EXAMPLES = (
    "anna-export --model base --adapter lora --out artifact",
    "anna-export embed artifact texts.jsonl --out vectors.parquet",
    "anna-export serve artifact --port 8080",
)


class _DefaultsToExport(commands.Verbs):
    """Takes `anna-export --bf16 …` for `anna-export export --bf16 …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ("--help", "-h", "--version"):
            args = ["export", *args]
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, unwrapped, so that they can be copied."""
        with formatter.section("Examples"):
            formatter.write("".join(f"  {line}\n" for line in _EXAMPLES))


@click.group(
    cls=_DefaultsToExport,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(package_name="anna-export")
def cli() -> None:
    """Take a LoRA-tuned text-embedding model to a proved artifact, and embed with it.

    Without a command it is `export`. Exit codes: 0 yes; 1 the answer is no (parity failed); 2 wrong
    use or bad input; 3 too few texts to decide (verify); 70 a bug; 130 interrupted.
    """


for command in (
    export.command,
    plan.command,
    merge.command,
    build.command,
    verify.command,
    bench.command,
    report.command,
    embed.command,
    serve.command,
    package.command,
    inspect.command,
    prompts.group,
):
    cli.add_command(command)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # what stops a container or a job is cleaned up after as Ctrl-C is
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_group(cli, "anna-export", args)
