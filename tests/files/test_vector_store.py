"""Vectors on disk: every text once, nothing lost but what was half-written."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from anna_export.errors import DamagedError, ExistsError, SpaceError
from anna_export.files import vector_store
from anna_export.files.vector_store import VectorStore, key_of, open_store

DIM = 5


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def keys(count: int, start: int = 0) -> list[bytes]:
    return [key_of(str(index)) for index in range(start, start + count)]


def test_what_was_appended_is_read_again_by_key_in_any_order(tmp_path: Path) -> None:
    vectors = unit(7)
    with open_store(tmp_path, {"model": 1}, DIM) as store:
        store.append(keys(4), vectors[:4])
        store.append(keys(3, 4), vectors[4:])
    with open_store(tmp_path, {"model": 1}, DIM) as store:
        wanted = [keys(7)[index] for index in (6, 0, 3, 3)]
        assert (store.read(store.rows(wanted)) == vectors[[6, 0, 3, 3]]).all()
        assert store.rows(keys(2, 7)).tolist() == [-1, -1] and len(store) == 7


def test_keys_are_found_before_and_after_they_are_sorted_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_store, "_RECENT", 3)
    vectors = unit(11)
    with open_store(tmp_path, {}, DIM) as store:
        for start in range(0, 11, 2):
            count = min(2, 11 - start)
            store.append(keys(count, start), vectors[start : start + count])
            assert store.rows(keys(start + count)).tolist() == list(range(start + count))


def test_a_key_that_ends_in_zeros_is_found(tmp_path: Path) -> None:
    zeros = [bytes(16), b"\x01" + bytes(15), bytes(15) + b"\x01"]
    with open_store(tmp_path, {}, DIM) as store:
        store.append(zeros, unit(3))
    with open_store(tmp_path, {}, DIM) as store:
        assert store.rows([*zeros, b"\x02" + bytes(15)]).tolist() == [0, 1, 2, -1]


@pytest.mark.parametrize(("name", "lost"), [("vectors", 3), ("index", 5)])
def test_a_row_that_a_kill_cut_off_is_dropped_aloud_and_written_again(
    name: str, lost: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = unit(4)
    with open_store(tmp_path, {}, DIM) as store:
        store.append(keys(3), vectors[:3])
        path = store.folder / name
    os.truncate(path, path.stat().st_size - lost)
    with open_store(tmp_path, {}, DIM) as store:
        (message,) = caplog.messages
        assert message.startswith(
            f"anna-export: dropped 1 unfinished vectors at the end of {path}".removesuffix(
                f"/{name}"
            )
        )
        assert store.rows(keys(3)).tolist() == [0, 1, -1]
        store.append(keys(2, 2), vectors[2:])
        assert (store.read(store.rows(keys(4))) == vectors).all()
    with open_store(tmp_path, {}, DIM):
        assert len(caplog.messages) == 1


def test_vectors_without_keys_are_dropped_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_store(tmp_path, {}, DIM) as store:
        store.append(keys(2), unit(2))
        with (store.folder / "vectors").open("ab") as file:
            file.write(unit(3, seed=1).tobytes())
    with open_store(tmp_path, {}, DIM) as store:
        assert len(store) == 2 and "dropped 3 unfinished" in caplog.text
        store.append(keys(1, 2), unit(1, seed=2))
        assert (store.read(np.array([2])) == unit(1, seed=2)).all()


@pytest.mark.parametrize(("name", "row_bytes"), [("vectors", 4 * DIM), ("index", 20)])
def test_rows_at_the_end_that_a_crash_left_as_zeros_are_dropped_aloud(
    name: str, row_bytes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_store(tmp_path, {}, DIM) as store:
        store.append(keys(4), unit(4))
        with (store.folder / name).open("r+b") as file:
            file.seek(2 * row_bytes)
            file.write(bytes(2 * row_bytes))
    with open_store(tmp_path, {}, DIM) as store:
        assert "dropped 2 unfinished" in caplog.text
        assert store.rows(keys(4)).tolist() == [0, 1, -1, -1]


def test_what_was_closed_well_is_opened_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for start in (0, 2):
        with open_store(tmp_path, {}, DIM) as store:
            store.append(keys(2, start), unit(2))
    assert caplog.messages == []


def test_a_warning_is_one_line_on_stderr_of_a_program_that_set_no_logging_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with open_store(tmp_path, {}, DIM) as store:
        (store.folder / "index").write_bytes(b"half")
    with open_store(tmp_path, {}, DIM):
        assert capsys.readouterr().err.splitlines() == [
            f"anna-export: dropped 1 unfinished vectors at the end of {store.folder}; they are "
            "computed again"
        ]


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_damaged_row_before_sound_ones_is_refused_when_it_is_read(
    value: float, tmp_path: Path
) -> None:
    with open_store(tmp_path, {}, DIM) as store:
        store.append(keys(2), unit(2))
        with (store.folder / "vectors").open("r+b") as file:
            file.write(np.float32(value).tobytes())
    with open_store(tmp_path, {}, DIM) as store:
        assert store.read(np.array([1])).shape == (1, DIM)
        with pytest.raises(DamagedError, match=r"remove that folder, and they are computed again"):
            store.read(np.array([0, 1]))


def test_a_vector_under_the_key_of_another_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path, {}, DIM) as store:
        store.append(keys(3), unit(3))
        path = store.folder / "vectors"
        first, second = path.read_bytes()[: 4 * DIM], path.read_bytes()[4 * DIM : 8 * DIM]
        with path.open("r+b") as file:
            file.write(second + first)
        with pytest.raises(DamagedError, match="expected vectors as they were written"):
            store.read(np.array([0]))


class Spy:
    """Embeds a text as its length and its letters, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        return np.array([[len(text), text.count("a")] for text in texts], dtype=np.float32)


def embed(cache: Path, texts: Sequence[str], compute: Spy, prompt: str = "") -> np.ndarray:
    with open_store(cache, {"model": 1}, 2) as store:
        return store.embed([key_of(prompt, text) for text in texts], texts, compute)


def test_only_texts_that_are_new_are_embedded(tmp_path: Path) -> None:
    spy = Spy()
    first = embed(tmp_path, ["a", "bb", "a"], spy)
    assert spy.texts == ["a", "bb"] and first.tolist() == [[1, 1], [2, 0], [1, 1]]
    grown = embed(tmp_path, ["ccc", "bb", "a"], spy)
    assert spy.texts == ["a", "bb", "ccc"] and grown.tolist() == [[3, 0], [2, 0], [1, 1]]


def test_another_prompt_embeds_anew(tmp_path: Path) -> None:
    spy = Spy()
    embed(tmp_path, ["a"], spy)
    embed(tmp_path, ["a"], spy, "query: ")
    assert spy.texts == ["a", "a"]


def test_an_interrupt_loses_at_most_the_part_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_store, "PART_TEXTS", 2)
    spy, texts = Spy(), ["a", "bb", "ccc", "dddd"]

    class Stopped(Spy):
        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            if "ccc" in texts:
                raise KeyboardInterrupt
            return spy(texts)

    with pytest.raises(KeyboardInterrupt):
        embed(tmp_path, texts, Stopped())
    embed(tmp_path, texts, spy)
    assert spy.texts == texts


def test_progress_counts_the_texts_that_have_their_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_store, "PART_TEXTS", 2)
    embed(tmp_path, ["a"], Spy())
    reports: list[tuple[int, int]] = []
    texts = ["a", "bb", "ccc", "dddd"]
    with open_store(tmp_path, {"model": 1}, 2) as store:
        texts_keys = [key_of("", text) for text in texts]
        store.embed(texts_keys, texts, Spy(), progress=lambda *report: reports.append(report))
    assert reports == [(1, 4), (3, 4), (4, 4)]


def test_a_vector_that_is_not_finite_is_refused_and_not_stored(tmp_path: Path) -> None:
    with open_store(tmp_path, {}, DIM) as store:
        with pytest.raises(DamagedError, match="expected finite vectors, found NaN"):
            store.append(keys(1), np.full((1, DIM), np.nan))
        assert len(store) == 0 and (store.folder / "vectors").stat().st_size == 0


def test_another_identity_is_another_store(tmp_path: Path) -> None:
    with open_store(tmp_path, {"arithmetic": "fp32"}, DIM) as store:
        store.append(keys(1), unit(1))
    with open_store(tmp_path, {"arithmetic": "int8"}, DIM) as store:
        assert store.rows(keys(1)).tolist() == [-1]


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    with (
        open_store(tmp_path, {}, DIM),
        pytest.raises(ExistsError, match=r"found another at it; .* another `cache`"),
        open_store(tmp_path, {}, DIM),
    ):
        pass


def test_nothing_is_started_that_does_not_fit_on_the_disk(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, DIM)
    with pytest.raises(SpaceError, match=r"expected .* MB free"):
        store.require_room(1 << 50)
