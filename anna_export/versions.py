"""Which versions of which libraries are installed: what a figure or an artifact depends on."""

import importlib.metadata
from collections.abc import Iterable


def installed(distributions: Iterable[str]) -> dict[str, str]:
    """Return the versions of those that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
