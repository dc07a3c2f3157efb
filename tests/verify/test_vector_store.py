"""Vectors on disk: every text once, nothing lost but what was half-written."""

import os
from pathlib import Path

import numpy as np
import pytest

from anna_export.errors import DamagedError, ExistsError, SpaceError
from anna_export.text.prompts import NO_PROMPT, Prompt
from anna_export.verify import vector_store
from anna_export.verify.vector_store import VectorStore, behind, open_store, text_key

DIM = 5


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def keys(count: int, start: int = 0) -> list[bytes]:
    return [text_key(str(index), NO_PROMPT) for index in range(start, start + count)]


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


@pytest.mark.parametrize(("name", "lost"), [("vectors", 3), ("keys", 5)])
def test_a_row_that_a_kill_cut_off_is_dropped_and_written_again(
    name: str, lost: int, tmp_path: Path
) -> None:
    vectors = unit(4)
    with open_store(tmp_path, {}, DIM) as store:
        store.append(keys(3), vectors[:3])
        path = store.folder / name
    os.truncate(path, path.stat().st_size - lost)
    with open_store(tmp_path, {}, DIM) as store:
        assert store.rows(keys(3)).tolist() == [0, 1, -1]
        store.append(keys(2, 2), vectors[2:])
        assert (store.read(store.rows(keys(4))) == vectors).all()


def test_vectors_without_keys_are_dropped(tmp_path: Path) -> None:
    with open_store(tmp_path, {}, DIM) as store:
        store.append(keys(2), unit(2))
        with (store.folder / "vectors").open("ab") as file:
            file.write(unit(3, seed=1).tobytes())
    with open_store(tmp_path, {}, DIM) as store:
        assert len(store) == 2
        store.append(keys(1, 2), unit(1, seed=2))
        assert (store.read(np.array([2])) == unit(1, seed=2)).all()


def test_a_row_that_is_no_vector_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path, {}, DIM) as store:
        store.append(keys(2), unit(2))
        with (store.folder / "vectors").open("r+b") as file:
            file.write(bytes(4 * DIM))
        assert store.read(np.array([1])).shape == (1, DIM)
        with pytest.raises(DamagedError, match=r"remove that folder"):
            store.read(np.array([0, 1]))


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


def test_a_key_tells_text_prompt_and_prefix_apart() -> None:
    parts = [("a", Prompt("b")), ("ab", NO_PROMPT), ("a", Prompt("", "b")), ("", Prompt("ab"))]
    different = [text_key(*pair) for pair in parts]
    first, second = behind("00" * 32, different), behind("11" * 32, different)
    assert len({*different, *first, *second}) == 12
    assert behind("", different) == different


def test_nothing_is_started_that_does_not_fit_on_the_disk(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, DIM)
    with pytest.raises(SpaceError, match=r"expected .* MB free"):
        store.require_room(1 << 50)
