"""The messages of errors, which are one line each."""

from collections.abc import Callable

import pytest

from anna_export.errors import AnnaError


def one_line(error: pytest.ExceptionInfo[AnnaError]) -> str:
    """Return the message, held to one line."""
    message = str(error.value)
    assert "\n" not in message
    return message


def refusal(kind: type[AnnaError], call: Callable[[], object]) -> str:
    """Return the message of the error that the call must raise, held to one line."""
    with pytest.raises(kind) as error:
        call()
    return one_line(error)
