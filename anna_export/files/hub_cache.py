"""The hub's cache, which names folders by commits: models--OWNER--NAME/snapshots/COMMIT."""

from pathlib import Path
from typing import Final

_SNAPSHOTS: Final = "snapshots"


def folder_name(folder: Path) -> str:
    """Return what a folder is called: in the hub's cache, its repository's name without owner."""
    real = folder.resolve()
    kind, *owner_and_name = real.parent.parent.name.split("--")
    if real.parent.name == _SNAPSHOTS and kind == "models" and owner_and_name:
        return owner_and_name[-1]
    return real.name


def snapshot_hint(folder: Path, name: str) -> str:
    """Return where in a repository's folder a file lies that is looked for; "" if nowhere."""
    below = sorted(path.parent for path in folder.glob(f"{_SNAPSHOTS}/*/{name}"))
    return f"name {below[0]}, which has one" if below else ""
