"""Reading safetensors files by position, without mapping them into memory.

A mapped 5 GB shard counts against an address-space limit and drags pages in; here only the tensor
that is asked for is read, and what was read is dropped from the page cache afterwards.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from anna_export.errors import DamagedError, MissingError, UnsupportedError

DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPE_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_LIMIT_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in a safetensors file."""

    path: Path
    key: str
    dtype: str  # as the file says: F32, BF16, I64, …
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    size_bytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The stored type, which is one of DTYPES."""
        return DTYPES[self.dtype]

    def require_float(self) -> None:
        """Refuse what this package cannot compute with.

        Raises:
            UnsupportedError: If it is not stored as fp32, fp16 or bf16.
        """
        if self.dtype not in DTYPES:
            raise UnsupportedError(
                f"expected {self.key} in fp32, fp16 or bf16, found {self.dtype} in {self.path}; "
                "quantized weights are not read; use the original model"
            )

    def read(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Read the tensor, or (N,) int64 rows of it, in its stored type.

        Raises:
            UnsupportedError: If it is not stored as fp32, fp16 or bf16.
            DamagedError: If the file ends before the tensor does.
        """
        self.require_float()
        if rows is not None:
            return self.read_rows(rows).view(self.torch_dtype).reshape(-1, *self.shape[1:])
        return self.read_bytes().view(self.torch_dtype).reshape(self.shape)

    def read_bytes(self) -> torch.Tensor:
        """Read what is stored as (size_bytes,) uint8.

        Raises:
            DamagedError: If the file ends before the tensor does.
        """
        stored = torch.empty(self.size_bytes, dtype=torch.uint8)
        self._read_into(stored.numpy().data, [(0, self.size_bytes)])
        return stored

    def read_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Read these (N,) int64 rows of a matrix, in their order, as (N, row_bytes) uint8.

        Raises:
            DamagedError: If the file ends before the tensor does.
        """
        row_bytes = self.size_bytes // self.shape[0]
        stored = torch.empty((len(rows), row_bytes), dtype=torch.uint8)
        # rows that follow one another are read at once
        ends = torch.nonzero(rows.diff() != 1).flatten() + 1
        runs = torch.tensor_split(rows, ends.tolist()) if len(rows) else ()
        pieces = [(int(run[0]) * row_bytes, len(run) * row_bytes) for run in runs]
        self._read_into(stored.reshape(-1).numpy().data, pieces)
        return stored

    def _read_into(self, buffer: memoryview, pieces: Sequence[tuple[int, int]]) -> None:
        """Read pieces of the tensor, each from a byte on and so long, one behind the other."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for start, size in pieces:
                done = 0
                while done < size:
                    position = self.offset + start + done
                    count = os.preadv(descriptor, [buffer[done:size]], position)
                    if count == 0:
                        raise DamagedError(
                            f"expected all of {self.key} in {self.path}, found its end"
                        )
                    done += count
                buffer = buffer[size:]
            os.posix_fadvise(descriptor, self.offset, self.size_bytes, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read where each tensor of a file lies, and check that the file holds them all.

    Raises:
        MissingError: If there is no such file.
        DamagedError: If the file is truncated, too long, or not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > _HEADER_LIMIT_BYTES:
                raise DamagedError(f"expected a safetensors file, found something else in {path}")
            text = file.read(length)
            size_bytes = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise MissingError(f"expected the weights file {path}, found none") from None
    if len(text) < length:
        raise DamagedError(
            f"expected a header of {length} bytes, found {len(text)}: {path} is truncated"
        )
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {key: _locate(path, key, entry, 8 + length) for key, entry in header.items()}
    except (
        AttributeError,
        KeyError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise DamagedError(f"expected a safetensors header, found {error!r} in {path}") from None
    _require_seamless(path, tensors, 8 + length, size_bytes)
    return tensors


def _locate(path: Path, key: str, entry: dict, data_start: int) -> StoredTensor:
    begin, end = (int(value) for value in entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    dtype = str(entry["dtype"])
    expected = math.prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else end - begin
    if end - begin != expected or min((end - begin, *shape)) < 0:
        raise ValueError(f"{key} of shape {shape} in {end - begin} bytes")
    return StoredTensor(path, key, dtype, shape, data_start + begin, end - begin)


def _require_seamless(
    path: Path, tensors: dict[str, StoredTensor], start: int, size_bytes: int
) -> None:
    """Hold a file to its format: tensors fill it, one behind the other, to its end."""
    end = start
    for tensor in sorted(tensors.values(), key=lambda each: (each.offset, each.size_bytes)):
        if tensor.offset != end:
            raise DamagedError(
                f"expected {tensor.key} at byte {end}, found it at {tensor.offset}: the header of "
                f"{path} leaves gaps or lets tensors overlap"
            )
        end += tensor.size_bytes
    if end > size_bytes:
        raise DamagedError(
            f"expected {end} bytes, found {size_bytes}: {path} is truncated; download it again"
        )
    if end < size_bytes:
        raise DamagedError(
            f"expected {end} bytes by its header, found {size_bytes} in {path}; download it again"
        )


def header_bytes(tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """Return the header of a safetensors file whose tensors follow in this order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * dtype.itemsize
        entries[key] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
