"""A disk that fills up: one line, exit code 2, and nothing left, whatever was being written."""

import ctypes
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.cli import run
from tests.support.folders import names
from tests.support.types import Refused

DISK_BYTES = 32 << 20
Fill = Callable[[int], None]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real file system of 32 MiB."""
    folder = tmp_path_factory.mktemp("disk")
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={DISK_BYTES}".encode()
    if libc.mount(b"anna", os.fsencode(folder), b"tmpfs", 0, options) != 0:
        pytest.skip(f"may not mount a file system here: {os.strerror(ctypes.get_errno())}")
    yield folder
    assert libc.umount2(os.fsencode(folder), 2) == 0  # MNT_DETACH


@pytest.fixture
def place(disk: Path) -> Iterator[Path]:
    """An empty folder on it."""
    folder = disk / "place"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)
    (disk / "filler").unlink(missing_ok=True)


@pytest.fixture
def leave(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Fills the disk up to so many bytes, and hides that from those who look beforehand."""

    def fill(free: int) -> None:
        with (disk / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - free)
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**12))

    return fill


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused, and returns its one line."""

    def refuse(*args: object) -> str:
        assert run([str(arg) for arg in args]) == 2
        found = capsys.readouterr()
        assert found.out == "" and found.err.count("\n") == 1, found.err
        assert found.err.startswith("anna-export: expected room for "), found.err
        return found.err

    return refuse


# The weights are 5.4 MB, the tokenizer 3.5 MB, and the rest is small.
@pytest.mark.parametrize("free", [0, 1 << 20, 4 << 20, 6 << 20, 8 << 20])
def test_export_to_a_disk_that_fills_up_is_one_line(
    base: Path, adapter: Path, place: Path, leave: Fill, refused: Refused, free: int
) -> None:
    leave(free)
    out = place / "out"
    line = refused("--model", base, "--adapter", adapter, "--out", out, "--no-verify")
    assert f"room for out in {place}, found: No space left on device; make room" in line
    assert names(place) == set()


@pytest.mark.parametrize("name", ["parity.json", "README.md", "manifest.json"])
def test_disk_that_fills_up_while_evidence_is_written_is_one_line(
    artifact: Artifact,
    base: Path,
    place: Path,
    leave: Fill,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    write_text = Path.write_text
    full: list[str] = []

    def filling(path: Path, text: str, **options: str) -> int:
        if name in path.name and not full:
            full.append(name)
            leave(0)
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", filling)
    proof = [] if name == "parity.json" else ["--no-verify"]
    refused("--model", base, "--out", place / "out", "--max-tokens", "61", *proof)
    assert full and names(place) == set()


def test_overwriting_on_a_disk_that_fills_up_leaves_the_old_artifact(
    artifact: Artifact, base: Path, place: Path, leave: Fill, refused: Refused
) -> None:
    out = Path(shutil.copytree(artifact.folder, place / "out"))
    leave(6 << 20)
    refused("--model", base, "--out", out, "--no-verify", "--overwrite")
    assert open_artifact(out, check=True).manifest == artifact.manifest
    assert names(place) == {"out"}


@pytest.mark.parametrize("free", [0, 1 << 20, 6 << 20])
def test_merge_to_a_disk_that_fills_up_is_one_line(
    base: Path, adapter: Path, place: Path, leave: Fill, refused: Refused, free: int
) -> None:
    leave(free)
    line = refused("merge", "--model", base, "--adapter", adapter, "--out", place / "out")
    assert f"room for out in {place}, found: No space left" in line
    assert names(place) == set()


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize("pages", [0, 1, 20, 90])
def test_embed_to_a_disk_that_fills_up_is_one_line(
    artifact: Artifact,
    place: Path,
    leave: Fill,
    refused: Refused,
    tmp_path: Path,
    suffix: str,
    pages: int,
) -> None:
    # 1,500 vectors of 160 bytes: 59 pages in a shard, and as many in the output
    (tmp_path / "texts.txt").write_text("".join(f"{number}\n" for number in range(1500)))
    leave(pages * 4096)
    out = place / f"vectors{suffix}"
    line = refused("embed", artifact.folder, tmp_path / "texts.txt", "--out", out)
    assert f"room for vectors{suffix} in {place}" in line
    # what was finished is kept for the next run; nothing that is half-written is
    left = {path.name.partition("-")[0] for path in place.rglob("*")}  # no hash of a shard's texts
    done = {".vectors" + suffix + ".shards", "00000000", "state.json"}
    assert left == (done if pages == 90 else set())


def test_room_is_looked_for_before_work(
    base: Path, adapter: Path, place: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, DISK_BYTES - (2 << 20))
    for verb in ("export", "merge"):
        args = [verb, "--model", base, "--adapter", adapter, "--out", place / "out"]
        assert run([str(arg) for arg in args]) == 2
        found = capsys.readouterr().err
        assert found.startswith("anna-export: expected ") and " free " in found
        assert found.count("\n") == 1 and names(place) == set()


def test_leftover_of_a_killed_export_is_no_reason_to_refuse(
    base: Path, place: Path, disk: Path
) -> None:
    leftover = place / ".out.partial-0"
    leftover.mkdir()
    with (leftover / "weights").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, DISK_BYTES - (8 << 20))
    args = ["--model", base, "--out", place / "out", "--no-verify", "--max-tokens", "61"]
    assert run([str(arg) for arg in args]) == 0
    assert names(place) == {"out"}


# -- the same where nothing may be mounted: a limit on the size of files --


@contextmanager
def small_files(size_bytes: int) -> Iterator[None]:
    known = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, known[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, known)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("verb", ["export", "merge", "embed"])
@pytest.mark.parametrize("size_bytes", [0, 10, 4096, 1 << 20])
def test_file_beyond_the_limit_is_one_line(
    artifact: Artifact,
    base: Path,
    adapter: Path,
    tmp_path: Path,
    refused: Refused,
    verb: str,
    size_bytes: int,
) -> None:
    (tmp_path / "texts.txt").write_text("".join(f"{number}\n" for number in range(7000)))
    (tmp_path / "place").mkdir()
    out = tmp_path / "place" / "out.npy"
    args: dict[str, list[object]] = {
        "export": ["--model", base, "--adapter", adapter, "--no-verify"],
        "merge": ["--model", base, "--adapter", adapter],
        "embed": [artifact.folder, tmp_path / "texts.txt"],
    }
    with small_files(size_bytes):
        line = refused(verb, *args[verb], "--out", out)
    assert f"room for out.npy in {tmp_path / 'place'}, found: File too large" in line
    left = {path.name.partition("-")[0] for path in (tmp_path / "place").rglob("*")}  # as above
    assert left <= {".out.npy.shards", "00000000", "00000001", "state.json"}
    assert left == set() or (verb == "embed" and size_bytes == 1 << 20)
