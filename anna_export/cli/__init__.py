"""The command line: `anna-export VERB`; without a verb it is `export`."""

import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from anna_export.cli import embed, export, inspect, merge, options, plan, prompts, shown, verify
from anna_export.errors import AnnaError

WRONG_USE = 2
BUG = 70
INTERRUPTED = 130
# What the machine refuses is told in one line, as our own errors are; it is no bug.
_REFUSALS = frozenset(
    getattr(errno, name)
    for name in (
        "EACCES EDQUOT EFBIG EIO EISDIR ELOOP EMFILE ENAMETOOLONG ENFILE ENOSPC ENOTDIR EPERM EROFS"
    ).split()
)
_EXAMPLES = (
    "anna-export --model base --adapter lora --out artifact",
    "anna-export embed artifact texts.jsonl --out vectors.parquet",
)


class _DefaultsToExport(options.Verbs):
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
    """Take a LoRA-tuned Mistral text-embedding model to a proved artifact, and embed with it.

    Without a command it is `export`. Exit codes: 0 yes; 1 the answer is no (parity failed); 2 wrong
    use or bad input; 70 a bug; 130 interrupted.
    """


for command in (
    export.command,
    plan.command,
    merge.command,
    verify.command,
    embed.command,
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
    given = sys.argv[1:] if args is None else list(args)
    try:
        with _no_warnings(), cli.make_context("anna-export", given) as context:
            cli.invoke(context)
        return 0
    except click.exceptions.Exit as end:  # after --help or --version
        return end.exit_code
    except AnnaError as error:
        return _complain(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        return _complain(_wrong_use(error), WRONG_USE)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            click.echo(err=True)  # ends the line on which the terminal shows ^C
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        shown.drop_stdout()
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            place = os.fspath(error.filename or "a file")
            return _complain(f"expected to use {place}, found: {error.strerror}", WRONG_USE)
        if isinstance(error, MemoryError):
            return _complain(
                "expected enough memory, found too little; anna-export plan says what is needed",
                WRONG_USE,
            )
        traceback.print_exc()
        return _complain("this is a bug in anna-export; please report it with the lines above", BUG)


def _wrong_use(error: click.ClickException) -> str:
    """Say what was expected, what was found, and where it is explained."""
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if ctx is None:
        return error.format_message()
    if isinstance(error, click.NoSuchOption):
        known = [option for parameter in ctx.command.params for option in parameter.opts]
        options = sorted(name for name in known if name.startswith("--"))
        found = f"expected an option of {', '.join(options)}, found {error.option_name}"
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        option = isinstance(error.param, click.Option)
        name = error.param.opts[0] if option else error.param.human_readable_name
        found = f"expected {name}, found none"
    else:
        found = error.format_message().rstrip(".")
    return f"{found}; see {ctx.command_path} --help"


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Keep libraries' warnings off the terminal, unless Python was asked for them (-W)."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


def _complain(message: str, code: int) -> int:
    click.echo(f"anna-export: {' '.join(message.split())}", err=True)
    return code
