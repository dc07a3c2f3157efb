"""The hub's cache, which names folders by commits: models--OWNER--NAME/snapshots/COMMIT."""

from pathlib import Path
from typing import Final

_SNAPSHOTS: Final = "snapshots"
_MOST: Final = 5  # folders listed


def folder_name(folder: Path) -> str:
    """Return what a folder is called: in the hub's cache, its repository's name without owner."""
    real = folder.resolve()
    kind, *owner_and_name = real.parent.parent.name.split("--")
    if real.parent.name == _SNAPSHOTS and kind == "models" and owner_and_name:
        return owner_and_name[-1]
    return real.name


def hint_below(folder: Path, name: str, key: str = "") -> str:
    """Say in which folders below one a file lies that is looked for in it; "" for none.

    Args:
        folder: What was given: a folder above, or a repository's in the hub's cache.
        name: The file's.
        key: What its text holds, where others are called so too.
    """
    below = [
        str(path.parent.relative_to(folder))
        for path in (*folder.glob(f"*/{name}"), *folder.glob(f"{_SNAPSHOTS}/*/{name}"))
        if key in path.read_text(encoding="utf-8", errors="replace")
    ]
    # checkpoint-500 comes before checkpoint-1000
    below.sort(key=lambda lower: (len(lower), lower))
    if below[1:]:
        listed = ", ".join(below[:_MOST]) + (", …" if below[_MOST:] else "")
        return f"these folders in it have one: {listed}; name one of them"
    return f"name {folder / below[0]}, which has one" if below else ""
