"""Folders that tests share are made once, and never seen half made."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.shared import SharedFolders


@pytest.fixture
def folders(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> SharedFolders:
    return SharedFolders(tmp_path / "shared", tmp_path_factory)


class Maker:
    """Writes a folder, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        folder.mkdir()
        (folder / "text").write_text(f"made {self.times}")


def test_folder_is_made_once_by_all_that_want_it_at_once(folders: SharedFolders) -> None:
    make = Maker()
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: folders.folder("thing", make, 1), range(8)))
    assert make.times == 1 and len(set(paths)) == 1 and paths[0].name == "thing"
    assert (paths[0] / "text").read_text() == "made 1"


def test_changed_copy_changes_no_other(folders: SharedFolders) -> None:
    make = Maker()
    first = folders.copy("thing", make)
    (first / "text").write_text("changed")
    assert (folders.copy("thing", make) / "text").read_text() == "made 1"


def test_failed_making_leaves_nothing_and_is_done_again(folders: SharedFolders) -> None:
    def fail(folder: Path) -> None:
        folder.mkdir()
        (folder / "text").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folders.folder("thing", fail)
    assert (folders.folder("thing", Maker()) / "text").read_text() == "made 1"


def test_path_stands_for_its_names_and_content(folders: SharedFolders, tmp_path: Path) -> None:
    make = Maker()
    model = tmp_path / "model"
    model.mkdir()

    def made_of(name: str, content: str) -> Path:
        for path in model.iterdir():
            path.unlink()
        (model / name).write_text(content)
        return folders.folder("thing", make, model)

    first = made_of("weights", "ab")
    assert len({first, made_of("weights", "ac"), made_of("weight", "sab")}) == 3
    assert made_of("weights", "ab") == first and make.times == 3
    assert folders.folder("thing", make, model, 2) != first
