"""How a command line runs: its exit codes, and one line on stderr for every mistake of a user."""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import click

from anna_export.console import output
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


def run_group(group: click.Group, name: str, args: Sequence[str] | None) -> int:
    """Run a program's command line and return its exit code.

    Args:
        group: Its commands.
        name: The program's name, with which every message starts.
        args: Its arguments; None takes this process's.
    """
    arguments = sys.argv[1:] if args is None else list(args)
    complain = partial(_complain, name)
    try:
        with _no_warnings(), group.make_context(name, arguments) as context:
            group.invoke(context)
        return 0
    except click.exceptions.Exit as end:  # after --help or --version
        return end.exit_code
    except AnnaError as error:
        return complain(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        return complain(_wrong_use(error), WRONG_USE)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            click.echo(err=True)  # ends the line on which the terminal shows ^C
        return complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        output.drop_stdout()
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            path = os.fspath(error.filename or "a file")
            return complain(f"expected to use {path}, found: {error.strerror}", WRONG_USE)
        if isinstance(error, MemoryError):
            return complain(
                f"expected enough memory, found too little; {name} plan says what is needed",
                WRONG_USE,
            )
        traceback.print_exc()
        return complain(f"this is a bug in {name}; please report it with the lines above", BUG)


def _wrong_use(error: click.ClickException) -> str:
    """Say what was expected, what was found, and where it is explained."""
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if ctx is None:
        return error.format_message()
    if isinstance(error, click.NoSuchOption):
        flags = [option for parameter in ctx.command.params for option in parameter.opts]
        options = sorted(name for name in flags if name.startswith("--"))
        complaint = f"expected an option of {', '.join(options)}, found {error.option_name}"
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        option = isinstance(error.param, click.Option)
        name = error.param.opts[0] if option else error.param.human_readable_name
        complaint = f"expected {name}, found none"
    else:
        complaint = error.format_message().rstrip(".")
    return f"{complaint}; see {ctx.command_path} --help"


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Keep libraries' warnings off the terminal, unless Python was asked for them (-W)."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


def _complain(name: str, message: str, code: int) -> int:
    click.echo(f"{name}: {' '.join(message.split())}", err=True)
    return code
