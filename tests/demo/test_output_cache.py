"""Kept things: made once, made anew when anything changed, never half-written."""

from pathlib import Path

import pytest

from demo.output_cache import OutputCache


class Maker:
    """Writes a folder of one file and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        folder.mkdir()
        (folder / "weights").write_text(f"made {self.calls}")


def test_a_second_run_reuses(tmp_path: Path) -> None:
    make = Maker()
    for _ in range(2):
        path = OutputCache(tmp_path / "out").make("base", {"seed": 0}, make)
    assert make.calls == 1
    assert (path / "weights").read_text() == "made 1"


def test_seconds_are_of_what_was_made_and_not_of_what_was_reused(tmp_path: Path) -> None:
    OutputCache(tmp_path).make("base", {}, Maker())
    cache = OutputCache(tmp_path)
    cache.make("base", {}, Maker())
    cache.make("adapter", {}, Maker())
    assert set(cache.seconds) == {"adapter"} and cache.seconds["adapter"] > 0


def test_another_key_makes_anew(tmp_path: Path) -> None:
    make = Maker()
    for seed in range(2):
        path = OutputCache(tmp_path).make("base", {"seed": seed}, make)
    assert (path / "weights").read_text() == "made 2"


@pytest.mark.parametrize("damage", ["change", "add", "remove", "record"])
def test_damage_makes_anew(tmp_path: Path, damage: str) -> None:
    make = Maker()
    path = OutputCache(tmp_path).make("base", {}, make)
    match damage:
        case "change":
            (path / "weights").write_text("made X")
        case "add":
            (path / "more").write_text("")
        case "remove":
            (path / "weights").unlink()
        case "record":
            (tmp_path / ".made-from.json").write_text("{")
    OutputCache(tmp_path).make("base", {}, make)
    assert sorted(file.read_text() for file in path.iterdir()) == ["made 2"]


def test_an_interrupt_leaves_what_was_there(tmp_path: Path) -> None:
    cache, make = OutputCache(tmp_path), Maker()
    cache.make("base", {"seed": 0}, make)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def interrupted(folder: Path) -> None:
        make(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.make("base", {"seed": 1}, interrupted)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".making" / "base").mkdir(parents=True)
    path = OutputCache(tmp_path).make("base", {}, Maker())
    assert (path / "weights").exists()
    assert not (tmp_path / ".making").exists()


def test_two_things_are_kept_side_by_side(tmp_path: Path) -> None:
    first, other = Maker(), Maker()
    for _ in range(2):
        OutputCache(tmp_path).make("one", {}, first)
        OutputCache(tmp_path).make("other", {}, other)
    assert (first.calls, other.calls) == (1, 1)
