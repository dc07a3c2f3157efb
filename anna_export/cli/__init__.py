"""The command line: `anna-export VERB`; without a verb it is `export`."""

import sys
import traceback
from collections.abc import Sequence

import click

from anna_export.cli import embed, export, inspect, merge, plan, verify
from anna_export.errors import AnnaError

BUG = 70
INTERRUPTED = 130


class _DefaultsToExport(click.Group):
    """Takes `anna-export --fp8 …` for `anna-export export --fp8 …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ("--help", "-h", "--version"):
            args = ["export", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_DefaultsToExport,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(package_name="anna-export")
def cli() -> None:
    r"""Take a LoRA-tuned Mistral text-embedding model to a proved artifact, and embed with it.

    \b
    Example:
      anna-export --model base --adapter lora --out artifact
      anna-export embed artifact texts.jsonl --out vectors.parquet

    Without a verb it is `export`. Exit codes: 0 yes; 1 the answer is no (parity failed); 2 wrong
    use or bad input; 70 a bug; 130 interrupted.
    """


for command in (
    export.command,
    plan.command,
    merge.command,
    verify.command,
    embed.command,
    inspect.command,
):
    cli.add_command(command)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        return cli.main(args, prog_name="anna-export", standalone_mode=False) or 0
    except AnnaError as error:
        return _complain(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        return _complain(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception:
        traceback.print_exc()
        return _complain("this is a bug in anna-export; please report it with the lines above", BUG)


def _complain(message: str, code: int) -> int:
    click.echo(f"anna-export: {' '.join(message.split())}", err=True)
    return code
