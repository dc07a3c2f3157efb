"""Names that a folder's own lists give: none of them may lead out of it."""

from pathlib import Path, PurePosixPath


def is_inside(folder: Path, name: str) -> bool:
    """Say whether a listed name stays in its folder, links followed."""
    pure = PurePosixPath(name)
    return (
        not pure.is_absolute()
        and ".." not in pure.parts
        and (folder / name).resolve().is_relative_to(folder.resolve())
    )
