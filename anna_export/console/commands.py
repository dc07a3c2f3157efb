"""How commands behave: an example in help, options given once, fields as flags, folders there."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from anna_export.errors import AnnaError, InputError
from anna_export.files.model_folders import require_folder

Command = TypeVar("Command", bound=Callable[..., Any])


class Verb(click.Command):
    """A command whose help ends in an example, and whose options of one value are given once."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and refuse what click would take the last of."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option in self.params:
            if isinstance(option, click.Option) and _is_single(option) and order.count(option) > 1:
                raise InputError(
                    f"expected {option.opts[0]} once, found it {order.count(option)} times; give "
                    f"one; see {ctx.command_path} --help"
                )
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error that names a field then names its flag."""
        try:
            return super().invoke(ctx)
        except AnnaError as error:
            error.args = (with_flags(str(error), self.params), *error.args[1:])
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, unwrapped, so that it can be copied."""
        with formatter.section("Example"):
            formatter.write(f"  {self.example}\n")


def _is_single(option: click.Option) -> bool:
    """Say whether it has one value, which a second one would replace; a plain flag has none."""
    return not option.multiple and (not option.is_flag or bool(option.secondary_opts))


def with_flags(message: str, parameters: Iterable[click.Parameter]) -> str:
    """Replace each field in backquotes by the flag of the parameter of that name, if there is one.

    The library knows fields, `max_tokens`; a command line knows flags, --max-tokens.
    """
    flags = {
        parameter.name: " or ".join([parameter.opts[0], *parameter.secondary_opts])
        for parameter in parameters
    }
    return re.sub(r"`(\w+)`", lambda field: flags.get(field[1], field[0]), message)


class Verbs(click.Group):
    """A group of commands, which are named where one is asked for that is not there."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name those there are."""
        if args[0] not in self.commands:
            raise InputError(f"expected a command of {', '.join(self.commands)}, found {args[0]!r}")
        return super().resolve_command(ctx, args)


class _Folder(click.Path):
    """A folder to read: that it is missing is said before libraries are loaded for seconds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        require_folder(path)
        return path


path = click.Path(path_type=Path)
folder = _Folder(path_type=Path)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace the output if it exists."
)
