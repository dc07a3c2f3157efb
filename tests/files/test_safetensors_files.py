"""Safetensors files are read as the safetensors library reads them, and damage is named."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anna_export.errors import AnnaError, DamagedError, MissingError, UnsupportedError
from anna_export.weights.safetensors_files import header_bytes, read_header
from tests.support import refusals

TENSORS = {
    "matrix": torch.randn(7, 13, generator=torch.Generator().manual_seed(0)),
    "half": torch.arange(15).half(),
    "brain": torch.arange(-9, 9).bfloat16().reshape(2, 3, 3),
    "one": torch.tensor(3.5),
    "none": torch.empty(0, 5),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def with_header(path: Path, header: object, data: bytes = bytes(16)) -> Path:
    """Write a file with this header, which is JSON unless it is bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}


def refusal(kind: type[AnnaError], path: Path) -> str:
    return refusals.refusal(kind, lambda: read_header(path))


@pytest.mark.parametrize("key", TENSORS)
def test_tensor_is_read_as_it_was_written(file: Path, key: str) -> None:
    found = read_header(file)[key].read()
    assert found.dtype == TENSORS[key].dtype and found.equal(TENSORS[key])


def test_only_tensors_are_in_a_header(file: Path) -> None:
    assert set(read_header(file)) == set(TENSORS)


def test_written_header_is_read_by_the_safetensors_library(tmp_path: Path) -> None:
    kept = {key: tensor for key, tensor in TENSORS.items() if key != "none"}
    header = header_bytes({key: (t.dtype, tuple(t.shape)) for key, t in kept.items()})
    data = [tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in kept.values()]
    (tmp_path / "ours.safetensors").write_bytes(header + b"".join(data))
    found = load_file(tmp_path / "ours.safetensors")
    assert found.keys() == kept.keys()
    assert all(found[key].equal(tensor) for key, tensor in kept.items())


def test_data_of_a_written_header_is_aligned() -> None:
    # 8 bytes: what the format asks, so that a mapped tensor can be used in place
    assert {len(header_bytes({"k" * n: (torch.float32, (1,))})) % 8 for n in range(9)} == {0}


def test_type_that_is_no_plain_float_is_refused_when_read(tmp_path: Path) -> None:
    save_file({"table": torch.arange(5)}, tmp_path / "ints.safetensors")
    stored = read_header(tmp_path / "ints.safetensors")["table"]
    with pytest.raises(UnsupportedError, match="expected table in fp32, fp16 or bf16, found I64"):
        stored.read()


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert "gone.safetensors" in refusal(MissingError, tmp_path / "gone.safetensors")


@pytest.mark.parametrize("lost", [1, 40, 500])
def test_truncated_file_is_refused(file: Path, lost: int) -> None:
    os.truncate(file, file.stat().st_size - lost)
    assert "is truncated" in refusal(DamagedError, file)


@pytest.mark.parametrize("size", [0, 7])
def test_file_too_short_for_a_header_is_refused(file: Path, size: int) -> None:
    os.truncate(file, size)
    assert "expected a safetensors file" in refusal(DamagedError, file)


def test_file_longer_than_its_header_says_is_refused(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"\0")
    size = file.stat().st_size
    assert f"expected {size - 1} bytes by its header, found {size}" in refusal(DamagedError, file)


def test_file_truncated_after_it_was_opened_is_refused_when_read(file: Path) -> None:
    stored = read_header(file)["matrix"]
    os.truncate(file, stored.offset + 5)
    with pytest.raises(DamagedError, match="expected all of matrix"):
        stored.read()


@pytest.mark.parametrize("start", [b"\x80\x02}q\x00", b"version https://git-lfs", b"\xff" * 8])
def test_file_of_another_kind_is_refused(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(start.ljust(200, b"x"))
    assert "expected a safetensors file" in refusal(DamagedError, path)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"\xff\xfe",
        b"",
        b"[" * 100_000,
        [],
        3,
        {"w": []},
        {"w": {}},
        {"w": {"dtype": "F32", "shape": [4]}},
        {"w": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16, 32]}},
        {"w": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, float("inf")]}},
        {"w": entry(0, 16, [5])},
        {"w": entry(0, 16, [-2, -2])},
        {"w": {"dtype": "F8", "shape": [1], "data_offsets": [16, 0]}},
    ],
    ids=lambda header: str(header)[:40],
)
def test_header_that_is_none_is_refused(tmp_path: Path, header: object) -> None:
    path = with_header(tmp_path / "w.safetensors", header)
    assert "expected a safetensors header" in refusal(DamagedError, path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, 8), (4, 16)),
        ((0, 4), (8, 16)),
        ((4, 8), (8, 16)),
        ((0, 16), (0, 16)),
        ((-4, 4), (4, 16)),
    ],
    ids=["overlap", "gap", "late start", "one within the other", "before the data"],
)
def test_tensors_that_do_not_follow_one_another_are_refused(
    tmp_path: Path, first: tuple[int, int], second: tuple[int, int]
) -> None:
    header = {"a": entry(*first), "b": entry(*second)}
    path = with_header(tmp_path / "w.safetensors", header)
    assert "leaves gaps or lets tensors overlap" in refusal(DamagedError, path)


def test_tensor_past_the_end_is_refused(tmp_path: Path) -> None:
    path = with_header(tmp_path / "w.safetensors", {"a": entry(0, 16), "b": entry(16, 24)})
    assert "is truncated" in refusal(DamagedError, path)


def test_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes((1000).to_bytes(8, "little") + b"{}")
    assert "expected a header of 1000 bytes, found 2" in refusal(DamagedError, path)
