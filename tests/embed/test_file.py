"""Embedding a file: the encoder's vectors, in order, and an interrupted run that goes on."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from anna_export.embed.file import Embedded, LocalEmbedder, embed_file, require_output
from anna_export.encoder import Encoder
from anna_export.errors import (
    DamagedError,
    ExistsError,
    InputError,
    MissingError,
    SpaceError,
    UnsupportedError,
)
from anna_export.files import text_file
from anna_export.files.text_file import read_texts
from anna_export.text.batch import TokenBatch
from anna_export.text.prompts import Prompts
from anna_export.verify.texts import ordinary_texts
from tests.support.folders import names

TEXTS = [*ordinary_texts(9), "", "漢字とかな", "  spaces  "]


class Counting:
    """The encoder's backend, which counts rows and may spoil them."""

    def __init__(self, encoder: Encoder) -> None:
        self.inner, self.rows = encoder.backend, 0
        self.name, self.compute_label = encoder.backend.name, encoder.backend.compute_label
        self.spec = encoder.backend.spec
        self.bad: list[int] | None = None  # ids whose vector is NaN

    def run(self, batch: TokenBatch) -> np.ndarray:
        self.rows += len(batch.lengths)
        vectors = self.inner.run(batch).copy()
        for row, ids in enumerate(batch.ids):
            if self.bad == ids[: batch.lengths[row]].tolist():
                vectors[row] = np.nan
        return vectors


@pytest.fixture
def counting(encoder: Encoder) -> Counting:
    return Counting(encoder)


@pytest.fixture
def run(encoder: Encoder, counting: Counting, tmp_path: Path) -> Callable[..., Embedded]:
    """Embeds tmp_path/texts.txt, or another file, in shards of five."""
    counted = Encoder(
        counting,
        encoder.tokeniser,
        Prompts.of_fronts({"query": "Query: ", "other": "Other: "}),
    )

    def embed_texts(
        source: str = "texts.txt",
        out: str = "vectors.npy",
        *,
        artifact_id: str = "a",
        field: str = "text",
        **options: Any,
    ) -> Embedded:
        texts = read_texts(tmp_path / source, field)
        options = {"shard_texts": 5, **options}
        return embed_file(LocalEmbedder(counted), artifact_id, texts, tmp_path / out, **options)

    return embed_texts


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return path


def write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def stop_after(done: int) -> Callable[[int, int], None]:
    """A progress that interrupts, as Ctrl-C does, once so many texts are embedded."""

    def progress(texts: int, _: int) -> None:
        if texts >= done:
            raise KeyboardInterrupt

    return progress


# -- in and out --


def test_npy_has_the_encoders_vectors_in_order(
    run: Callable[..., Embedded], texts: Path, encoder: Encoder, tmp_path: Path
) -> None:
    assert run() == Embedded(tmp_path / "vectors.npy", len(TEXTS), 0)
    vectors = np.load(tmp_path / "vectors.npy")
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), encoder.dim)
    # a shard is batched by itself: only the order of sums differs
    np.testing.assert_allclose(vectors, encoder.encode(TEXTS), rtol=0, atol=1e-6)
    assert names(tmp_path) == {"texts.txt", "vectors.npy"}


def test_parquet_has_row_numbers_as_ids(
    run: Callable[..., Embedded], texts: Path, encoder: Encoder, tmp_path: Path
) -> None:
    run(out="vectors.parquet")
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert table.column_names == ["id", "embedding"]
    assert table["id"].to_pylist() == list(range(len(TEXTS)))
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_allclose(vectors, encoder.encode(TEXTS), rtol=0, atol=1e-6)  # as above


@pytest.mark.parametrize("ids", [[7, -3, 2**62], ["b", "a", "漢"]], ids=["int", "str"])
def test_ids_of_a_jsonl_are_kept_in_its_order(
    run: Callable[..., Embedded], encoder: Encoder, tmp_path: Path, ids: list
) -> None:
    rows = [{"text": f"text {key}", "id": key, "more": 1} for key in ids]
    write_jsonl(tmp_path / "texts.jsonl", rows)
    run("texts.jsonl", "vectors.parquet", shard_texts=2)
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert table["id"].to_pylist() == ids
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    expected = encoder.encode([row["text"] for row in rows])
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)  # as above


def test_field_names_the_key_of_the_text(
    run: Callable[..., Embedded], encoder: Encoder, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "no", "body": "a b"}])
    run("texts.jsonl", field="body")
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), encoder.encode(["a b"]))


def test_prompt_stands_before_every_text(
    run: Callable[..., Embedded], texts: Path, encoder: Encoder, tmp_path: Path
) -> None:
    run(prompt="query")
    expected = encoder.encode([f"Query: {text}" for text in TEXTS])
    vectors = np.load(tmp_path / "vectors.npy")
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)  # as above


def test_texts_are_read_a_shard_at_a_time(
    texts: Path, encoder: Encoder, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, rows, ahead = read_texts(texts), text_file._rows, []

    def watched(path: Path, field: str) -> Iterator[tuple[int | str | None, str]]:
        for number, row in enumerate(rows(path, field), start=1):
            ahead.append(number - counting.rows)
            yield row

    monkeypatch.setattr(text_file, "_rows", watched)
    counted = Encoder(counting, encoder.tokeniser)
    embed_file(LocalEmbedder(counted), "a", source, texts.with_name("v.npy"), shard_texts=5)
    assert len(ahead) == len(TEXTS) and max(ahead) == 5


def test_progress_runs_through_all_shards(run: Callable[..., Embedded], texts: Path) -> None:
    reports: list[tuple[int, int]] = []
    run(progress=lambda done, total: reports.append((done, total)))
    assert reports == sorted(reports) and {total for _, total in reports} == {len(TEXTS)}
    assert {(5, 12), (10, 12), (12, 12)} <= set(reports)


# -- an interrupted run goes on --


@pytest.fixture
def interrupted(run: Callable[..., Embedded], texts: Path, counting: Counting) -> Counting:
    """Two of three shards are done."""
    with pytest.raises(KeyboardInterrupt):
        run(progress=stop_after(11))
    counting.rows = 0
    return counting


def test_finished_shards_are_not_computed_again(
    run: Callable[..., Embedded], interrupted: Counting, encoder: Encoder, tmp_path: Path
) -> None:
    assert names(tmp_path) == {"texts.txt", ".vectors.npy.shards"}
    assert run().resumed == 10 and interrupted.rows == 2
    np.testing.assert_allclose(
        np.load(tmp_path / "vectors.npy"), encoder.encode(TEXTS), rtol=0, atol=1e-6
    )  # as above
    assert names(tmp_path) == {"texts.txt", "vectors.npy"}


@pytest.mark.parametrize(
    "change",
    [
        {"artifact_id": "b"},
        {"prompt": "query"},
        {"shard_texts": 4},
    ],
    ids=["artifact", "prompt", "shards"],
)
def test_run_of_something_else_starts_anew(
    run: Callable[..., Embedded], interrupted: Counting, change: dict[str, Any]
) -> None:
    assert run(**change).resumed == 0 and interrupted.rows == 12


def test_run_of_a_changed_file_starts_anew(
    run: Callable[..., Embedded], interrupted: Counting, texts: Path
) -> None:
    texts.write_text(texts.read_text().replace("spaces", "Spaces"))
    assert run().resumed == 0 and interrupted.rows == 12


def test_run_in_another_precision_starts_anew(
    run: Callable[..., Embedded], interrupted: Counting
) -> None:
    interrupted.compute_label = "bf16 on CUDA"
    assert run().resumed == 0 and interrupted.rows == 12


@pytest.mark.parametrize("size_bytes", [0, 100, 800 - 4, 800 + 4])
def test_shard_of_the_wrong_size_is_computed_again(
    run: Callable[..., Embedded],
    interrupted: Counting,
    encoder: Encoder,
    tmp_path: Path,
    size_bytes: int,
) -> None:
    (shard,) = tmp_path.glob(".vectors.npy.shards/00000001-*.float32")
    assert shard.stat().st_size == 800  # five texts of 40 dimensions
    shard.write_bytes(bytes(size_bytes))
    assert run().resumed == 5 and interrupted.rows == 7
    np.testing.assert_allclose(
        np.load(tmp_path / "vectors.npy"), encoder.encode(TEXTS), rtol=0, atol=1e-6
    )  # as above


def test_shard_of_texts_that_the_file_held_for_a_while_is_computed_again(
    run: Callable[..., Embedded], texts: Path, counting: Counting, encoder: Encoder, tmp_path: Path
) -> None:
    source, content = read_texts(texts), texts.read_text()
    texts.write_text(content.replace(TEXTS[0], "another text", 1))
    with pytest.raises(InputError, match="found it changed meanwhile"):
        embed_file(LocalEmbedder(encoder), "a", source, tmp_path / "vectors.npy", shard_texts=5)
    texts.write_text(content)
    assert run().resumed == 7 and counting.rows == 5
    np.testing.assert_allclose(
        np.load(tmp_path / "vectors.npy"), encoder.encode(TEXTS), rtol=0, atol=1e-6
    )  # as above


@pytest.mark.parametrize("state", [b"", b"{", b"\xff", b"{}"])
def test_shards_of_an_unknown_run_are_not_used(
    run: Callable[..., Embedded], interrupted: Counting, tmp_path: Path, state: bytes
) -> None:
    (tmp_path / ".vectors.npy.shards" / "state.json").write_bytes(state)
    assert run().resumed == 0 and interrupted.rows == 12


def test_run_that_finished_nothing_leaves_nothing(
    run: Callable[..., Embedded], texts: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(progress=stop_after(1), shard_texts=99)
    assert names(tmp_path) == {"texts.txt"}


# -- refusals --


def test_overwrite_replaces_the_vectors(
    run: Callable[..., Embedded], texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "vectors.npy").write_text("old")
    with pytest.raises(ExistsError):
        run()
    assert (tmp_path / "vectors.npy").read_text() == "old"
    run(overwrite=True)
    assert len(np.load(tmp_path / "vectors.npy")) == len(TEXTS)


def test_vector_that_is_not_finite_is_named_by_its_place_in_the_file(
    run: Callable[..., Embedded], texts: Path, counting: Counting, encoder: Encoder, tmp_path: Path
) -> None:
    (counting.bad,) = encoder.tokeniser.ids([TEXTS[7]])
    with pytest.raises(DamagedError) as error:
        run()
    assert "found NaN or infinity for text 2" in str(error.value)
    assert f"its text 0 is text 5 of {texts}" in str(error.value)
    assert not (tmp_path / "vectors.npy").exists()
    counting.bad = None
    assert run().resumed == 5


def test_file_that_changes_meanwhile_is_refused(
    run: Callable[..., Embedded], texts: Path, tmp_path: Path
) -> None:
    def change(done: int, _: int) -> None:
        if done == 5:
            texts.write_text(texts.read_text().replace("transfer", "TRANSFER"))

    with pytest.raises(InputError, match="found it changed meanwhile"):
        run(progress=change)
    assert not (tmp_path / "vectors.npy").exists()


def test_too_little_room_is_said_before_work(
    run: Callable[..., Embedded],
    texts: Path,
    counting: Counting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # twelve vectors of 40 numbers, once in shards and once in the output
    needed = 2 * 12 * 40 * 4
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(SpaceError, match="make room there"):
        run()
    assert counting.rows == 0 and names(tmp_path) == {"texts.txt"}
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed))
    run()


def test_second_process_at_the_same_output_is_refused(
    run: Callable[..., Embedded], texts: Path, tmp_path: Path
) -> None:
    shards = tmp_path / ".vectors.npy.shards"
    shards.mkdir()
    other = os.open(shards, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        with pytest.raises(ExistsError, match="found another at it"):
            run()
        assert shards.is_dir()
    finally:
        os.close(other)
    assert run().texts == len(TEXTS)


def test_output_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there.npy").write_text("")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(UnsupportedError, match=r"\.parquet or \.npy, found v\.csv"):
        require_output(tmp_path / "v.csv", overwrite=True)
    with pytest.raises(ExistsError, match="`overwrite` replaces it"):
        require_output(tmp_path / "there.npy", overwrite=False)
    with pytest.raises(ExistsError, match="found a folder"):
        require_output(tmp_path / "folder.npy", overwrite=True)
    with pytest.raises(MissingError, match="expected the folder"):
        require_output(tmp_path / "nowhere" / "v.npy", overwrite=False)
