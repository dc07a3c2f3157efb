"""Embed a file of texts, shard by shard, so that an interrupted run can be resumed."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anna_export.encoder import Encoder
from anna_export.errors import DamagedError, InputError, UnsupportedError
from anna_export.files.atomic import require_absent_file, staged_file
from anna_export.files.disk import require_disk
from anna_export.files.text_file import TextFile
from anna_export.files.work_folder import work_folder
from anna_export.progress import Progress
from anna_export.text.prompts import Prompts

SHARD_TEXTS: Final = 4096
OUTPUTS: Final = (".parquet", ".npy")
_SHARD: Final = ".float32"
_ITEM_BYTES: Final = 4

# a shard's number → the progress of its texts
Report = Callable[[int], Progress | None]


class BadShard(Exception):
    """A shard with a vector that is not finite."""

    def __init__(self, number: int, error: DamagedError) -> None:
        super().__init__(number, error)
        self.number, self.error = number, error


class Embedder(Protocol):
    """What embeds shards: this process, or a cluster."""

    dim: int
    compute_label: str
    prompts: Prompts

    def encode(
        self, shards: Iterator[tuple[int, list[str]]], prompt: str | None, report: Report
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Give each shard's number and (N, D) float32 vectors, in any order.

        Raises:
            BadShard: If a vector is not finite.
        """
        ...


class LocalEmbedder:
    """Embeds shards in this process, one after the other."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.dim, self.prompts = encoder.dim, encoder.prompts
        self.compute_label = encoder.backend.compute_label

    def encode(
        self, shards: Iterator[tuple[int, list[str]]], prompt: str | None, report: Report
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Give each shard's number and vectors, in order."""
        for number, texts in shards:
            try:
                vectors = self._encoder.encode(texts, prompt, progress=report(number))
            except DamagedError as error:
                raise BadShard(number, error) from None
            yield number, vectors


@dataclass(frozen=True, slots=True)
class Embedded:
    """The file written, its rows, and how many of them an earlier run had embedded."""

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
    embedder: Embedder,
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
        embedder: What embeds them.
        artifact_id: Of its artifact; a run is only resumed with the same one.
        source: The texts.
        out: A .parquet file (columns `id` and `embedding`) or a .npy file of (N, D) float32.
        prompt: Name of a prompt of the model; None for its default, if it has one, "" for none.
        overwrite: Replace `out` if it exists.
        progress: Called with the number of texts embedded.
        shard_texts: Texts in memory at once, and in a shard.

    Raises:
        InputError: If there is no such prompt, or the file changed since it was read.
        ExistsError: If `out` exists and is not to be overwritten.
        SpaceError: If the vectors do not fit on the disk.
        DamagedError: If a vector is not finite.
    """
    require_output(out, overwrite=overwrite)
    request = {
        "artifact_id": artifact_id,
        "compute": embedder.compute_label,
        "source_sha256": source.sha256,
        "prompt": asdict(embedder.prompts.find(prompt)),
        "field": source.field,
        "shard_texts": shard_texts,
    }
    with work_folder(out, request, "shards") as work:
        size_bytes = len(source.ids) * embedder.dim * _ITEM_BYTES
        # the shards that are missing, and the file they are joined into
        stored_bytes = sum(path.stat().st_size for path in work.path.glob(f"*{_SHARD}"))
        require_disk(out, 2 * size_bytes - stored_bytes)
        run = _ShardRun(work.path, source, embedder.dim, shard_texts, progress)
        paths, resumed = run.embed(embedder, prompt)
        if not source.is_unchanged():
            raise InputError(
                f"expected {source.path} to stay as it is, found it changed meanwhile; run it again"
            )
        with staged_file(out) as aside:
            join = _join_npy if out.suffix == ".npy" else _join_parquet
            join(paths, source.ids, embedder.dim, aside)
    return Embedded(out, len(source.ids), resumed)


class _ShardRun:
    """The shards of one file: those an earlier run stored, and those this run embeds."""

    def __init__(
        self,
        folder: Path,
        source: TextFile,
        dim: int,
        shard_texts: int,
        progress: Progress | None,
    ) -> None:
        self._folder, self._source, self._dim = folder, source, dim
        self._shard_texts, self._progress = shard_texts, progress
        self._paths: list[Path] = []
        self._sizes: list[int] = []
        self._done = self._resumed = 0

    def embed(self, embedder: Embedder, prompt: str | None) -> tuple[list[Path], int]:
        """Embed every missing shard; return all shards, and how many texts were stored already."""
        try:
            for number, vectors in embedder.encode(self._missing(), prompt, self._report):
                with staged_file(self._paths[number]) as aside:
                    aside.write_bytes(vectors.data)
                self._add(self._sizes[number])
        except BadShard as bad:
            before = sum(self._sizes[: bad.number])
            raise DamagedError(
                f"{bad.error} (its text 0 is text {before} of {self._source.path})"
            ) from None
        return self._paths, self._resumed

    def _missing(self) -> Iterator[tuple[int, list[str]]]:
        texts = self._source.texts()
        while batch := list(islice(texts, self._shard_texts)):
            number = len(self._paths)
            # named after its texts: the file may have held others while an earlier run read it
            path = self._folder / f"{number:08d}-{_texts_hash(batch)}{_SHARD}"
            self._paths.append(path)
            self._sizes.append(len(batch))
            if path.exists() and path.stat().st_size == len(batch) * self._dim * _ITEM_BYTES:
                self._resumed += len(batch)
                self._add(len(batch))
                continue
            for stale in self._folder.glob(f"{number:08d}-*{_SHARD}"):
                stale.unlink()
            yield number, batch

    def _report(self, number: int) -> Progress | None:
        """Report one shard's distinct texts as a part of all texts."""
        if self._progress is None:
            return None
        progress, before, total = self._progress, self._done, len(self._source.ids)
        size = self._sizes[number]
        return lambda done, distinct: progress(before + done * size // distinct, total)

    def _add(self, texts: int) -> None:
        self._done += texts
        if self._progress is not None:
            self._progress(self._done, len(self._source.ids))


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
