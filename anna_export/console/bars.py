"""A progress bar with a rate and the time left, on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console
from rich.text import Text

from anna_export.progress import Progress


class _Rate(rich_progress.ProgressColumn):
    """Items a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: rich_progress.Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        digits = 0 if speed >= 10 else 1
        return Text(f"{speed:,.{digits}f} {self.unit}/s", style="progress.data.speed")


@contextmanager
def bar(name: str, unit: str) -> Iterator[Progress]:
    """Show one bar while the work lasts."""
    in_bytes = unit == "bytes"
    columns = (
        rich_progress.TextColumn("{task.description:16}"),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn() if in_bytes else rich_progress.MofNCompleteColumn(),
        rich_progress.TransferSpeedColumn() if in_bytes else _Rate(unit),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(name, total=None)

        def progress(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield progress
