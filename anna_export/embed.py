"""Embed a file of texts, shard by shard, so that an interrupted run goes on where it was."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anna_export.encoder import Encoder
from anna_export.errors import DamagedError, InputError, UnsupportedError
from anna_export.progress import Progress
from anna_export.staging import (
    require_absent_file,
    require_disk,
    room_for,
    sole_writer,
    staged_file,
    write_text,
)
from anna_export.text_file import TextFile

SHARD_TEXTS: Final = 4096
OUTPUTS: Final = (".parquet", ".npy")
_SHARD: Final = ".float32"
_ITEM_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Embedded:
    """What was written: rows, and how many of them an earlier run had done."""

    path: Path
    texts: int
    resumed: int


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
        "prompt": asdict(encoder.prompts.find(prompt)),
        "field": source.field,
        "shard_texts": shard_texts,
    }
    with room_for(out), _shards(out, state) as shards:
        size_bytes = len(source.ids) * encoder.dim * _ITEM_BYTES
        # the shards, as far as they are not there yet, and what they are joined into
        held = sum(path.stat().st_size for path in shards.glob(f"*{_SHARD}"))
        require_disk(out, 2 * size_bytes - held)
        paths, resumed = _fill(shards, encoder, source, prompt, progress, shard_texts)
        if not source.is_unchanged():
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


def _texts_hash(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


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
