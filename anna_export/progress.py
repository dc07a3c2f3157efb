"""How long work is shown: by whoever asked for it, never by those who do it."""

from contextlib import AbstractContextManager
from typing import Protocol


class Progress(Protocol):
    """Is told how much work was done."""

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` texts or bytes are done."""
        ...


class Stage(Protocol):
    """Shows one stage of long work while it lasts."""

    def __call__(self, name: str, unit: str) -> AbstractContextManager[Progress | None]:
        """Start a stage; the unit is "bytes" or a plural noun."""
        ...
