"""Where what may be made again is kept."""

import os
from pathlib import Path


def default_cache() -> Path:
    """Return the user's cache folder of this program.

    Source: the XDG base directory specification.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "anna-export"
