"""How long work is shown: by whoever asked for it, never by those who do it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
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


def no_stage(name: str, unit: str) -> AbstractContextManager[Progress | None]:
    """Show nothing of a stage."""
    return nullcontext()


def in_steps(progress: Progress | None, total: int, steps: int) -> Callable[[], None]:
    """Return what is called after each of so many steps, and reports them as a part of a total."""
    done = count(1)

    def step() -> None:
        reached = next(done)
        if progress is not None:
            progress(reached * total // steps, total)

    return step
