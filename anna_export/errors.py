"""The mistakes of a user, each printed by the command line as one line, and its exit code.

Every class is also the standard exception that fits it, so a library user may catch either.
Anything else that is raised is a bug and keeps its traceback (exit code 70).
"""


class AnnaError(Exception):
    """Something was expected and something else was found; the message says what to do."""

    exit_code = 2


class InputError(AnnaError, ValueError):
    """A value, file or folder that cannot be used as it is."""


class MissingError(AnnaError, FileNotFoundError):
    """A file, folder or tensor that should be there and is not."""

    # OSError rewrites its arguments; the message alone is what a user reads.
    def __str__(self) -> str:
        return str(self.args[0])


class ExistsError(AnnaError, FileExistsError):
    """An output that exists already and was not to be overwritten."""

    def __str__(self) -> str:
        return str(self.args[0])


class ShapeError(AnnaError, ValueError):
    """Arrays, or an adapter and its base model, whose shapes do not agree."""


class UnsupportedError(AnnaError, ValueError):
    """A kind of model, adapter or option that is known by name and not supported."""


class DamagedError(AnnaError, ValueError):
    """A file that is truncated, changed, or not of the format its name says."""


class SpaceError(AnnaError, OSError):
    """Too little disk or memory for what was asked."""

    def __str__(self) -> str:
        return str(self.args[0])


class ExtraError(AnnaError, ImportError):
    """A library that belongs to an optional extra and is not installed."""


class ParityError(AnnaError, ArithmeticError):
    """The answer is no: the artifact's vectors are not close enough to the reference's."""

    exit_code = 1


class InconclusiveError(AnnaError, ArithmeticError):
    """Neither yes nor no: too few texts to tell the artifact's scores from the reference's."""

    exit_code = 3


class DivergedError(AnnaError, ArithmeticError):
    """Training whose loss or gradient is not finite any more."""

    exit_code = 1
