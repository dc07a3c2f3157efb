"""Embed a file of texts, shard by shard, so that an interrupted run goes on where it was."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anna_export.artifact import require_absent_file, write_text
from anna_export.encoder import Encoder
from anna_export.errors import InputError, MissingError, UnsupportedError
from anna_export.progress import Progress
from anna_export.spec import read_json

SHARD_TEXTS: Final = 4096
INPUTS: Final = (".txt", ".jsonl")
OUTPUTS: Final = (".parquet", ".npy")


@dataclass(frozen=True, slots=True)
class Embedded:
    """What was written: rows, and how many of them an earlier run had done."""

    path: Path
    texts: int
    resumed: int


def embed_file(
    encoder: Encoder,
    artifact_id: str,
    source: Path,
    out: Path,
    *,
    prompt: str | None = None,
    field: str = "text",
    overwrite: bool = False,
    progress: Progress | None = None,
    shard_texts: int = SHARD_TEXTS,
) -> Embedded:
    """Embed every text of a file, in its order.

    Args:
        encoder: What embeds.
        artifact_id: The encoder's artifact; a run is only resumed with the same one.
        source: A .txt file, one text a line, or a .jsonl file, one object a line.
        out: A .parquet file (columns of the .jsonl's `id`, if it has one, and `embedding`) or a
            .npy file of (N, D) float32.
        prompt: Name of a prompt of the model.
        field: The text's key in a .jsonl object.
        overwrite: Replace `out` if it exists.
        progress: Told how many texts are done.
        shard_texts: Texts embedded and kept at once.

    Raises:
        InputError: For a line that has no text, naming it.
        ExistsError: If `out` exists and is not to be overwritten.
    """
    if source.suffix not in INPUTS or out.suffix not in OUTPUTS:
        raise UnsupportedError(
            f"expected {' or '.join(INPUTS)} in and {' or '.join(OUTPUTS)} out, found "
            f"{source.name} and {out.name}"
        )
    require_absent_file(out, overwrite=overwrite)
    encoder.prompts.text(prompt)
    if not source.is_file():
        raise MissingError(f"expected a file of texts, found none at {source}")
    total = sum(1 for _ in _rows(source, field))
    if total == 0:
        raise InputError(f"expected at least one text, found none in {source}")
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    state = {
        "artifact_id": artifact_id,
        "arithmetic": encoder.backend.arithmetic,
        "source_sha256": digest,
        "prompt": prompt,
        "field": field,
        "shard_texts": shard_texts,
    }
    shards = _open_shards(out, state)
    rows, done, resumed = _rows(source, field), 0, 0
    paths: list[Path] = []
    while batch := list(islice(rows, shard_texts)):
        path = shards / f"{len(paths):08d}.npy"
        paths.append(path)
        if path.exists():
            resumed += len(batch)
        else:
            _save(path, encoder.encode([text for _, text in batch], prompt))
        done += len(batch)
        if progress is not None:
            progress(done, total)
    ids = [key for key, _ in _rows(source, field)]
    aside = out.with_name(f".{out.name}.partial")
    _join(paths, ids, total, encoder.dim, aside, out.suffix)
    aside.replace(out)
    shutil.rmtree(shards)
    return Embedded(out, total, resumed)


def _open_shards(out: Path, state: Mapping[str, object]) -> Path:
    """Return the folder of finished shards; emptied where it belongs to another run."""
    shards = out.with_name(f".{out.name}.shards")
    known = shards / "state.json"
    if not (known.exists() and read_json(known) == state):
        shutil.rmtree(shards, ignore_errors=True)
        shards.mkdir(parents=True)
        write_text(known, json.dumps(state))
    return shards


def _rows(source: Path, field: str) -> Iterator[tuple[object, str]]:
    """Yield each line's id and text."""
    with source.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                raise InputError(f"expected UTF-8, found {error} in {source}:{number}") from None
            if source.suffix == ".txt":
                yield None, line
            elif line.strip():
                yield _object(source, number, line, field)


def _object(source: Path, number: int, line: str, field: str) -> tuple[object, str]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"expected JSON, found {error} in {source}:{number}") from None
    text = value.get(field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise InputError(f"expected a text under {field!r}, found {line[:60]} in {source}:{number}")
    return value.get("id"), text


def _save(path: Path, vectors: np.ndarray) -> None:
    aside = path.with_suffix(".partial")
    with aside.open("wb") as file:
        np.save(file, vectors)
    aside.replace(path)


def _join(
    paths: list[Path], ids: list[object], total: int, dim: int, out: Path, suffix: str
) -> None:
    """Put the shards together in one file."""
    if suffix == ".npy":
        joined = np.lib.format.open_memmap(out, "w+", dtype=np.float32, shape=(total, dim))
        start = 0
        for path in paths:
            vectors = np.load(path)
            joined[start : start + len(vectors)] = vectors
            start += len(vectors)
        joined.flush()
        return
    column = pa.array(ids) if any(key is not None for key in ids) else pa.array(range(total))
    schema = pa.schema([("id", column.type), ("embedding", pa.list_(pa.float32(), dim))])
    with pq.ParquetWriter(out, schema) as writer:
        start = 0
        for path in paths:
            vectors = np.load(path)
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
            writer.write_table(
                pa.table([column[start : start + len(vectors)], flat], schema=schema)
            )
            start += len(vectors)
