"""Lays folders out as package managers do: every file a link to where its content is kept."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

REVISION: Final = "0123456789abcdef0123456789abcdef01234567"
Lay = Callable[[Path, Path], Path]


def lay_hub(source: Path, root: Path, revision: str = REVISION) -> Path:
    """As huggingface_hub's cache does: snapshots/REVISION/file -> ../../blobs/SHA256."""
    snapshot = root / "snapshots" / revision
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for path in _files(source):
        blob = root / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def lay_repository(source: Path, cache: Path, repository: str) -> Path:
    """Put a folder into a hub's cache as the revision that `main` is of a repository."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = lay_hub(source, root)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(REVISION)
    return snapshot


def lay_mount(source: Path, root: Path) -> Path:
    """As Kubernetes mounts a ConfigMap: top-level names, folders too, lead through `..data`."""
    shutil.copytree(source, root / "..2026_11_30")
    (root / "..data").symlink_to("..2026_11_30")
    for path in sorted(source.iterdir()):
        (root / path.name).symlink_to(f"..data/{path.name}")
    return root


def lay_store(source: Path, root: Path) -> Path:
    """As Nix and git-annex do: each file in a folder of its own, under another name, read-only."""
    folder = root / "profile"
    for path in _files(source):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        content = root / "store" / digest[:2] / f"{digest}-content"
        content.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, content)
        content.chmod(0o444)
        link = folder / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(content)
    return folder


LAYOUTS: Final[dict[str, Lay]] = {"hub": lay_hub, "mount": lay_mount, "store": lay_store}


def contents(folder: Path) -> dict[str, bytes]:
    """Return what every file below a folder holds, links not followed."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]
