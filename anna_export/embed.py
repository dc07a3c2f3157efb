"""Embed a file of texts, shard by shard, so that an interrupted run goes on where it was."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anna_export.encoder import Encoder
from anna_export.errors import DamagedError, InputError, MissingError, UnsupportedError
from anna_export.progress import Progress
from anna_export.staging import (
    require_absent_file,
    require_disk,
    room_for,
    sole_writer,
    staged_file,
    write_text,
)

SHARD_TEXTS: Final = 4096
INPUTS: Final = (".txt", ".jsonl")
OUTPUTS: Final = (".parquet", ".npy")
_SHARD: Final = ".float32"
_ITEM_BYTES: Final = 4
_INT64: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file of texts, read once from end to end: every line has a text."""

    path: Path
    field: str
    ids: Sequence[object]  # the .jsonl's own, all int or all str; else the rows' numbers
    sha256: str

    def texts(self) -> Iterator[str]:
        """Yield the texts in order."""
        return (text for _, text in _rows(self.path, self.field))


@dataclass(frozen=True, slots=True)
class Embedded:
    """What was written: rows, and how many of them an earlier run had done."""

    path: Path
    texts: int
    resumed: int


def read_texts(path: Path, field: str = "text") -> TextFile:
    """Read a file of texts through; only its ids stay in memory.

    Args:
        path: A .txt file, one text a line, or a .jsonl file, one object a line.
        field: The text's key in a .jsonl object.

    Raises:
        InputError: For a line without a text, naming it; or if there is no text at all.
        MissingError: If there is no such file.
    """
    if path.suffix not in INPUTS:
        raise UnsupportedError(f"expected texts in {' or '.join(INPUTS)}, found {path.name}")
    if not path.is_file():
        raise MissingError(f"expected a file of texts, found none at {path}")
    ids = [key for key, _ in _rows(path, field)]
    if not ids:
        raise InputError(f"expected at least one text, found none in {path}")
    return TextFile(path, field, range(len(ids)) if ids[0] is None else ids, _sha256(path))


def require_output(out: Path, *, overwrite: bool) -> None:
    """Refuse an output of an unknown kind, or one that cannot be written.

    Raises:
        AnnaError: If its suffix is none of OUTPUTS, it exists, or its folder does not.
    """
    if out.suffix not in OUTPUTS:
        raise UnsupportedError(f"expected vectors in {' or '.join(OUTPUTS)}, found {out.name}")
    require_absent_file(out, overwrite=overwrite)


def embed_file(
    encoder: Encoder,
    artifact_id: str,
    source: TextFile,
    out: Path,
    *,
    prompt: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    shard_texts: int = SHARD_TEXTS,
) -> Embedded:
    """Embed every text of a file, in its order.

    Args:
        encoder: What embeds.
        artifact_id: The encoder's artifact; a run is only resumed with the same one.
        source: The texts.
        out: A .parquet file (columns `id` and `embedding`) or a .npy file of (N, D) float32.
        prompt: Name of a prompt of the model; None for its default, if it has one, "" for none.
        overwrite: Replace `out` if it exists.
        progress: Told how many texts are done.
        shard_texts: Texts embedded and kept at once.

    Raises:
        InputError: If there is no such prompt, or the file changed since it was read.
        ExistsError: If `out` exists and is not to be overwritten.
        SpaceError: If the vectors do not fit on the disk.
        DamagedError: If a vector is not finite.
    """
    require_output(out, overwrite=overwrite)
    state = {
        "artifact_id": artifact_id,
        "arithmetic": encoder.backend.arithmetic,
        "source_sha256": source.sha256,
        "prompt": encoder.prompts.text(prompt),
        "field": source.field,
        "shard_texts": shard_texts,
    }
    with room_for(out), _shards(out, state) as shards:
        size_bytes = len(source.ids) * encoder.dim * _ITEM_BYTES
        # the shards, as far as they are not there yet, and what they are joined into
        held = sum(path.stat().st_size for path in shards.glob(f"*{_SHARD}"))
        require_disk(out, 2 * size_bytes - held)
        paths, resumed = _fill(shards, encoder, source, prompt, progress, shard_texts)
        if _sha256(source.path) != source.sha256:
            raise InputError(
                f"expected {source.path} to stay as it is, found it changed meanwhile; run it again"
            )
        with staged_file(out) as aside:
            join = _join_npy if out.suffix == ".npy" else _join_parquet
            join(paths, source.ids, encoder.dim, aside)
        shutil.rmtree(shards)
    return Embedded(out, len(source.ids), resumed)


def _fill(
    shards: Path,
    encoder: Encoder,
    source: TextFile,
    prompt: str | None,
    progress: Progress | None,
    shard_texts: int,
) -> tuple[list[Path], int]:
    """Make every shard that is not there; return all of them, and the texts of those that were."""
    texts, total, done, resumed = source.texts(), len(source.ids), 0, 0
    paths: list[Path] = []
    while batch := list(islice(texts, shard_texts)):
        # named after its texts: the file may have held others while an earlier run read it
        path = shards / f"{len(paths):08d}-{_texts_hash(batch)}{_SHARD}"
        if path.exists() and path.stat().st_size == len(batch) * encoder.dim * _ITEM_BYTES:
            resumed += len(batch)
        else:
            for stale in shards.glob(f"{len(paths):08d}-*{_SHARD}"):
                stale.unlink()
            report = _part_of(progress, done, len(batch), total)
            try:
                vectors = encoder.encode(batch, prompt, progress=report)
            except DamagedError as error:
                raise DamagedError(
                    f"{error} (its text 0 is text {done} of {source.path})"
                ) from None
            with staged_file(path) as aside:
                aside.write_bytes(vectors.data)
        paths.append(path)
        done += len(batch)
        if progress is not None:
            progress(done, total)
    return paths, resumed


@contextmanager
def _shards(out: Path, state: Mapping[str, object]) -> Iterator[Path]:
    """Give the folder of finished shards, emptied of another run's; it stays if there are some."""
    shards = out.with_name(f".{out.name}.shards")
    shards.mkdir(exist_ok=True)
    with sole_writer(shards, out):
        known, text = shards / "state.json", json.dumps(state)
        if not (known.exists() and known.read_bytes() == text.encode()):
            for path in shards.iterdir():
                path.unlink()
        try:
            if not known.exists():
                write_text(known, text)
            yield shards
        except BaseException:
            if not any(shards.glob(f"*{_SHARD}")):
                shutil.rmtree(shards)
            raise


def _part_of(progress: Progress | None, before: int, texts: int, total: int) -> Progress | None:
    """Report one shard's distinct texts as a part of all texts."""
    if progress is None:
        return None
    return lambda done, distinct: progress(before + done * texts // distinct, total)


def _rows(path: Path, field: str) -> Iterator[tuple[int | str | None, str]]:
    """Yield each line's id and text; ids are all int, all str, or all None."""
    kind: type | None = None
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                # some editors start a file with a byte order mark, which is no text
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"expected UTF-8, found {error} in {where}") from None
            line = line.removesuffix("\n").removesuffix("\r")
            if path.suffix == ".txt":
                yield None, line
            elif line.strip():
                key, text = _object(where, line, field)
                kind = kind or type(key)
                if type(key) is not kind:
                    raise InputError(
                        f"expected ids of one kind ({_kind(kind)} so far), found "
                        f"{_kind(type(key))} in {where}"
                    )
                yield key, text


def _object(where: str, line: str, field: str) -> tuple[int | str | None, str]:
    try:
        value = json.loads(line)
    except (RecursionError, ValueError) as error:
        raise InputError(f"expected JSON, found {error} in {where}") from None
    text = value.get(field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise InputError(f"expected a text under {field!r}, found {line[:60]} in {where}")
    key = value.get("id")
    if type(key) not in (int, str, type(None)) or (isinstance(key, int) and key not in _INT64):
        raise InputError(
            f"expected an id that is a text or a 64-bit integer, found {key!r} in {where}"
        )
    try:
        f"{text}{key}".encode()
    except UnicodeEncodeError:
        raise InputError(f"expected valid Unicode, found a lone surrogate in {where}") from None
    return key, text


def _kind(kind: type) -> str:
    return "none" if kind is type(None) else kind.__name__


def _texts_hash(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _join_npy(paths: Sequence[Path], ids: Sequence[object], dim: int, out: Path) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), dim)}
    with out.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for path in paths:
            file.write(path.read_bytes())


def _join_parquet(paths: Sequence[Path], ids: Sequence[object], dim: int, out: Path) -> None:
    column = pa.array(ids)
    schema = pa.schema([("id", column.type), ("embedding", pa.list_(pa.float32(), dim))])
    with pq.ParquetWriter(out, schema) as writer:
        start = 0
        for path in paths:
            vectors = np.fromfile(path, np.float32).reshape(-1, dim)
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
            writer.write_table(
                pa.table([column[start : start + len(vectors)], flat], schema=schema)
            )
            start += len(vectors)
