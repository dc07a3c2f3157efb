"""What every command shows the same way: progress on stderr, results on stdout, JSON."""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from anna_export.progress import Progress

if TYPE_CHECKING:
    pass


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, the rest on stderr."
)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    print_line(json.dumps(value, indent=2))


def print_rows(rows: dict[str, str]) -> None:
    """Print names and values in two columns on stdout, as wide as the terminal if it is one."""
    indent = max(len(name) for name in rows) + 2
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for name, value in rows.items():
        lines = textwrap.wrap(
            value, max(20, columns - indent), break_long_words=False, break_on_hyphens=False
        )
        print_line(name.ljust(indent) + f"\n{' ' * indent}".join(lines))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout, the first and last column left, the others right-aligned."""
    table = [heads, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    for row in table:
        first, *middle, last = (
            cell.ljust(width) if column_index in (0, len(heads) - 1) else cell.rjust(width)
            for column_index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print_line("  ".join([first, *middle, last]).rstrip())


def print_line(text: str) -> None:
    """Print one line on stdout, to whoever still reads it."""
    try:
        click.echo(text)
    except BrokenPipeError:
        drop_stdout()


def drop_stdout() -> None:
    """Print on to nobody: the reader left, as `head` does; the exit code still gives the answer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def size(size_bytes: float) -> str:
    """Return bytes as a reader counts them."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"


@contextmanager
def stage(name: str, unit: str) -> Iterator[Progress | None]:
    """Show a bar with a rate and the time left on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    # rich is loaded only where it draws, so that --help stays quick
    from anna_export.console.bars import bar

    with bar(name, unit) as progress:
        yield progress
