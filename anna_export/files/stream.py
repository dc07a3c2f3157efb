"""Writing a large file from tensors that are made one by one: make, hash and write overlap.

Two parts are made at once while one is hashed and written, so memory is bounded by the largest
parts, not by the file.
"""

import ctypes
import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from anna_export.files.disk import out_of_space
from anna_export.progress import Progress

# Written at once; then the kernel is told to start writing it out, so that the disk is never idle.
_BLOCK_BYTES = 16 << 20
# Threads that make parts; one more part may be finished and waiting.
_MAKERS = 2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _USUAL_BYTES = 1 << 30, 32 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a file.

    Args:
        offset: Where it starts; zeros fill what lies between parts.
        size_bytes: How long it is.
        make: Returns its bytes as a contiguous buffer; called once, in another thread.
    """

    offset: int
    size_bytes: int
    make: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Written:
    """A finished file."""

    sha256: str
    size_bytes: int


def write_parts(path: Path, parts: Sequence[Part], progress: Progress | None = None) -> Written:
    """Write parts in order, and sync them to disk.

    Args:
        path: The file to make.
        parts: Ordered by offset, not overlapping.
        progress: Told the bytes done.

    Raises:
        SpaceError: If the disk fills up.
    """
    total = parts[-1].offset + parts[-1].size_bytes if parts else 0
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with _kept_memory(), ThreadPoolExecutor(1) as hasher, closing(_made_ahead(parts)) as ready:
            end = 0
            for part, buffer in ready:
                assert len(buffer) == part.size_bytes and part.offset >= end, part
                for block in (memoryview(bytes(part.offset - end)), buffer):
                    hashed = hasher.submit(digest.update, block)
                    _write(descriptor, block)
                    hashed.result()
                end = part.offset + part.size_bytes
                # before the next is waited for, so that three are alive and not four
                del block, buffer
                if progress is not None:
                    progress(end, total)
        os.fsync(descriptor)
    except OSError as error:
        raise out_of_space(error, path) from None
    finally:
        os.close(descriptor)
    return Written(digest.hexdigest(), total)


def _made_ahead(parts: Sequence[Part]) -> Generator[tuple[Part, memoryview]]:
    """Make parts in threads of their own, no more than these ahead of the one that is used."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several makers, one core each, beat one maker on all cores
    makers = ThreadPoolExecutor(_MAKERS)
    try:
        coming: deque[Future[Any]] = deque()
        waiting = iter(parts)
        for part in parts:
            coming.extend(
                makers.submit(following.make)
                for following in islice(waiting, _MAKERS + 1 - len(coming))
            )
            yield part, memoryview(coming.popleft().result()).cast("B")
    finally:
        makers.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


@contextmanager
def _kept_memory() -> Iterator[None]:
    """Let malloc reuse what is freed: fresh pages cost as much as filling them (glibc only)."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _USUAL_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _USUAL_BYTES)
        libc.malloc_trim(0)


def _write(descriptor: int, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        count = os.write(descriptor, buffer[done : done + _BLOCK_BYTES])
        # DONTNEED on dirty pages starts their write-out and drops those already written
        os.posix_fadvise(
            descriptor, max(0, start - _BLOCK_BYTES), 2 * _BLOCK_BYTES, os.POSIX_FADV_DONTNEED
        )
        done += count
