"""Names that a folder's own lists give: none of them may lead out of it."""

from pathlib import Path, PurePosixPath


def stays_inside(name: str) -> bool:
    """Say whether a listed name, as it is written, stays in its folder."""
    pure = PurePosixPath(name)
    return not pure.is_absolute() and ".." not in pure.parts


def is_inside(folder: Path, name: str) -> bool:
    """Say whether a listed name stays in its folder, links followed."""
    return stays_inside(name) and (folder / name).resolve().is_relative_to(folder.resolve())
