"""Progress on stderr: how much is done, how fast it goes, how long it will take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        """Return the rate, or a dash until there is one."""
        speed = task.finished_speed or task.speed
        return Text("- steps/s" if speed is None else f"{speed:.1f} steps/s")


@contextmanager
def progress_bar(title: str, steps: int) -> Iterator[Callable[[], None]]:
    """Show a bar while the block runs; call what it yields after every step."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=steps)
        yield lambda: progress.advance(task)
