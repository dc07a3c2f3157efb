"""Outputs appear whole or not at all, and replace only what may be replaced."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from anna_export.artifact.manifest import MANIFEST_FILE
from anna_export.errors import ExistsError
from anna_export.files import atomic
from anna_export.files.atomic import require_absent, staged, write_text
from tests.support.folders import names


def test_text_that_fails_to_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notes.txt"
    write_text(path, "old")

    def fail(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "_sync", fail)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == {"notes.txt"}


def test_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        staged(tmp_path / "new" / "parent" / "out", overwrite=False, holding="mark") as folder,
    ):
        (folder / "mark").write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == set()


def test_folder_is_absent_until_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "parent" / "out"
    with staged(out, overwrite=False, holding="mark") as folder:
        (folder / "mark").write_text("whole")
        assert not out.exists() and all(name.startswith(".") for name in names(out.parent))
    assert (out / "mark").read_text() == "whole" and names(out.parent) == {"out"}


@pytest.mark.parametrize("atomic", [True, False], ids=["exchange", "renames"])
def test_overwritten_folder_is_replaced_and_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool
) -> None:
    out = tmp_path / "out"
    for text in ("old", "new"):
        if text == "new" and not atomic:
            monkeypatch.setattr("ctypes.CDLL", lambda _: object())
        with staged(out, overwrite=True, holding="mark") as folder:
            (folder / "mark").write_text(text)
            (folder / text).write_text("")
    assert names(out) == {"mark", "new"} and names(tmp_path) == {"out"}
    assert (out / "mark").read_text() == "new"


def test_overwritten_folder_is_never_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = tmp_path / "out", Path.rename
    out.mkdir()
    (out / "mark").write_text("old")

    def checked(source: Path, target: Path) -> Path:
        try:
            return rename(source, target)
        finally:
            assert (out / "mark").exists()

    monkeypatch.setattr(Path, "rename", checked)
    with staged(out, overwrite=True, holding="mark") as folder:
        (folder / "mark").write_text("new")
    assert (out / "mark").read_text() == "new"


def test_overwrite_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
    with staged(tmp_path / "out", overwrite=True, holding="mark") as folder:
        (folder / "mark").write_text("new")
    assert (tmp_path / "out").is_symlink() and names(tmp_path / "disk") == {"real"}
    assert (tmp_path / "disk" / "real" / "mark").read_text() == "new"


def test_overwrite_does_not_delete_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("dear")
    with pytest.raises(ExistsError, match="remove that folder yourself"):
        require_absent(tmp_path, overwrite=True, holding=MANIFEST_FILE)


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below"])
def test_output_at_or_below_a_file_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExistsError, match="found a file"):
        require_absent(tmp_path / place, overwrite=True, holding=MANIFEST_FILE)


def test_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        pytest.raises(ExistsError, match="`overwrite`"),
        staged(out, overwrite=False, holding="mark"),
    ):
        out.mkdir()
        (out / "mark").write_text("of another process")
    assert (out / "mark").read_text() == "of another process" and names(tmp_path) == {"out"}


def test_only_abandoned_leftovers_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "o[u]t*"
    dead, other = tmp_path / f".{out.name}.partial-dead", tmp_path / ".out.partial-1"
    for folder in (dead, other):
        folder.mkdir()
        (folder / "weights").write_text("")
    with staged(out, overwrite=False, holding="mark") as folder:
        (folder / "mark").write_text("")
    assert names(tmp_path) == {out.name, other.name}


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_that_another_is_making_is_refused_at_once(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"
    with staged(out, overwrite=overwrite, holding="mark") as first:
        (first / "mark").write_text("first")
        with (
            pytest.raises(ExistsError, match=r"only process that makes .*out, found"),
            staged(out, overwrite=overwrite, holding="mark"),
        ):
            pytest.fail("nothing may be made twice at once")
        assert names(tmp_path) == {first.name}
    assert (out / "mark").read_text() == "first" and names(tmp_path) == {"out"}


def test_disk_without_locks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    out = tmp_path / "out"
    with (
        staged(out, overwrite=True, holding="mark") as first,
        staged(out, overwrite=True, holding="mark") as second,
    ):
        for folder in (first, second):
            (folder / "mark").write_text(folder.name)
    assert (out / "mark").read_text() == first.name  # the last to finish
