"""A file written part by part is the file written whole; a failure ends it, and says why."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
import weakref
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from anna_export.errors import SpaceError
from anna_export.files import stream as streaming
from anna_export.files.stream import Part, write_parts

# odd sizes, one empty, with and without gaps between them
SIZES = [(0, 13), (13, 1), (14, 0), (100, 4097), (4200, 77)]


def pieces(places: list[tuple[int, int]]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(1, 256, size, dtype=np.uint8) for _, size in places]


def parts_of(places: list[tuple[int, int]], data: list[np.ndarray]) -> list[Part]:
    return [
        Part(offset, size, piece.copy) for (offset, size), piece in zip(places, data, strict=True)
    ]


def failing(*_: object) -> NoReturn:
    raise ValueError("this part cannot be made")


@pytest.fixture(params=[streaming._BLOCK_BYTES, 10], ids=["one block", "many blocks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block")
def test_file_is_its_parts_with_zeros_between_and_its_hash(tmp_path: Path) -> None:
    data = pieces(SIZES)
    whole = bytearray(SIZES[-1][0] + SIZES[-1][1])
    for (offset, size), piece in zip(SIZES, data, strict=True):
        whole[offset : offset + size] = piece.tobytes()
    written = write_parts(tmp_path / "file", parts_of(SIZES, data))
    assert (tmp_path / "file").read_bytes() == whole
    assert written.sha256 == hashlib.sha256(whole).hexdigest()
    assert written.size_bytes == len(whole)


@pytest.mark.usefixtures("block")
def test_buffer_of_any_shape_and_type_is_written_as_its_bytes(tmp_path: Path) -> None:
    matrix = np.arange(35, dtype=np.float64).reshape(5, 7)
    write_parts(tmp_path / "file", [Part(0, matrix.nbytes, lambda: matrix)])
    assert (tmp_path / "file").read_bytes() == matrix.tobytes()


def test_no_parts_make_an_empty_file(tmp_path: Path) -> None:
    written = write_parts(tmp_path / "file", [])
    assert (tmp_path / "file").read_bytes() == b""
    assert written.sha256 == hashlib.sha256().hexdigest() and written.size_bytes == 0


def test_each_part_is_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make(index: int) -> np.ndarray:
        made.append(index)
        return np.full(9, index, np.uint8)

    parts = [Part(9 * i, 9, partial(make, i)) for i in range(20)]
    write_parts(tmp_path / "file", parts)
    assert sorted(made) == list(range(20))


def test_progress_rises_to_the_total(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_parts(
        tmp_path / "file",
        parts_of(SIZES, pieces(SIZES)),
        lambda done, total: told.append((done, total)),
    )
    assert told == sorted(told) and told[-1] == (4277, 4277)


@pytest.mark.parametrize("slow", ["makers", "write"])
def test_no_more_than_three_parts_are_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    lock, alive, most = threading.Lock(), 0, 0

    def gone() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def make() -> np.ndarray:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        if slow == "makers":
            time.sleep(0.01)
        piece = np.ones(1000, np.uint8)
        weakref.finalize(piece, gone)
        return piece

    def slow_write(descriptor: int, buffer: memoryview) -> None:
        if slow == "write":
            time.sleep(0.01)

    monkeypatch.setattr(streaming, "_write", slow_write)
    write_parts(tmp_path / "file", [Part(1000 * i, 1000, make) for i in range(12)])
    assert most == 3


def test_two_parts_are_made_at_once(tmp_path: Path) -> None:
    meeting = threading.Barrier(2, timeout=20)

    def make() -> bytes:
        meeting.wait()
        return b"x"

    write_parts(tmp_path / "file", [Part(0, 1, make), Part(1, 1, make)])


# -- failures --


@pytest.mark.parametrize("index", [0, 1, 5])
def test_maker_that_fails_ends_the_write_with_its_error(tmp_path: Path, index: int) -> None:
    made: list[int] = []

    def make(part: int) -> bytes:
        made.append(part)
        return b"x" if part != index else failing()

    parts = [Part(i, 1, partial(make, i)) for i in range(50)]
    with pytest.raises(ValueError, match="this part cannot be made"):
        write_parts(tmp_path / "file", parts)
    assert max(made) <= index + 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SpaceError, match="expected room for file in"):
        write_parts(tmp_path / "file", parts_of(SIZES, pieces(SIZES)))


def test_any_other_error_of_the_disk_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(OSError, match="I/O error") as error:
        write_parts(tmp_path / "file", parts_of(SIZES, pieces(SIZES)))
    assert not isinstance(error.value, SpaceError)


FULL = """
import pathlib, resource, signal, sys
from anna_export.errors import SpaceError
from anna_export.files.stream import Part, write_parts
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    parts = [Part(60_000 * i, 60_000, lambda: bytes(60_000)) for i in range(9)]
    write_parts(pathlib.Path(sys.argv[1]), parts)
except SpaceError as error:
    sys.exit(f"told: {error}")
"""


@pytest.mark.slow
def test_disk_that_fills_up_while_writing_ends_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.startswith("told: expected room for file")


@pytest.mark.parametrize("fails", ["maker", "write"])
def test_torch_has_its_threads_again_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    threads = torch.get_num_threads()
    running = threading.active_count()
    parts = [Part(0, 1, failing if fails == "maker" else lambda: b"x"), Part(1, 1, lambda: b"x")]
    if fails == "write":
        monkeypatch.setattr(os, "write", failing)
    with pytest.raises(ValueError) as error:
        write_parts(tmp_path / "file", parts)
    # while the error, and with it every frame it passed, is still held
    assert error.value is not None
    assert torch.get_num_threads() == threads
    assert threading.active_count() == running


def test_file_that_exists_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_parts(tmp_path / "file", parts_of(SIZES, pieces(SIZES)))
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_interruption_between_parts_ends_the_write(tmp_path: Path) -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    parts = [Part(i, 1, lambda: b"x") for i in range(9)]
    running = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        write_parts(tmp_path / "file", parts, interrupted)
    assert threading.active_count() == running
