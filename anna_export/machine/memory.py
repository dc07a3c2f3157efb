"""The memory this process may still take: the machine's, its cgroups', its own limit."""

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

from anna_export.errors import SpaceError

_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int:
    """Return what this process may still take: the machine's, its cgroups', its own limit."""
    limits = [psutil.virtual_memory().available, *_left_by_cgroups()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - psutil.Process().memory_info().vms)
    return max(0, min(limits))


def _left_by_cgroups() -> Iterator[int]:
    """Yield what each cgroup around this process leaves of its limit, page cache not counted."""
    if not _OWN_CGROUPS.exists():
        return
    for line in _OWN_CGROUPS.read_text().splitlines():
        _, controllers, path_in_tree = line.split(":", 2)
        if controllers == "":
            root, limit, used = _CGROUPS, "memory.max", "anon"
        elif controllers == "memory":
            root, limit, used = _CGROUPS / "memory", "memory.limit_in_bytes", "total_rss"
        else:
            continue
        # in a container, the upper part of the path may not be there to see
        group = root / path_in_tree.lstrip("/")
        for folder in (group, *group.parents)[: len(group.parts) - len(root.parts) + 1]:
            path = folder / limit
            if path.exists() and (text := path.read_text().strip()).isdigit():
                stat = dict(
                    row.split() for row in (folder / "memory.stat").read_text().splitlines()
                )
                yield int(text) - int(stat[used])


def fits_in_memory(needed_bytes: int) -> bool:
    """Say whether this much fits, with a tenth to spare."""
    return needed_bytes * 1.1 < available_memory_bytes()


def require_memory(needed_bytes: int, purpose: str) -> None:
    """Refuse to load what the system would kill this process for.

    Raises:
        SpaceError: Naming what is needed and what is available.
    """
    available = available_memory_bytes()
    if available < needed_bytes:
        raise SpaceError(
            f"expected {needed_bytes / 1e9:.1f} GB of memory for {purpose}, found "
            f"{available / 1e9:.1f} GB available; close other programs, or use a larger machine"
        )
