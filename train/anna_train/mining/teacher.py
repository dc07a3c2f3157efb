"""The teacher: retrievers and reranker over one collection, opened once and asked part by part."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from anna_export.errors import DamagedError
from anna_export.files.vector_store import key_of, open_store
from anna_export.files.work_folder import WorkFolder
from anna_export.progress import Progress, Stage
from anna_train.data.rows import Row, RowFile, text_key
from anna_train.mining.collection import Collection, Question, folder_sha256
from anna_train.mining.dense import open_text_encoder
from anna_train.mining.lexical import Lsa, Words
from anna_train.mining.pool import Pool, Retriever
from anna_train.mining.rerank import (
    CrossEncoderReranker,
    DenseReranker,
    LearnedReranker,
    Reranker,
    fit,
    fit_keys,
    folds_of,
)
from anna_train.mining.settings import TeacherSettings

_Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, slots=True)
class Judged:
    """Some rows' queries, their pool, and its scores."""

    rows: Sequence[Row]
    questions: Sequence[Question]
    pool: Pool
    logits: np.ndarray  # (B, C) float64, any value where the pool has no text
    scores: np.ndarray  # the same, calibrated


class Teacher:
    """Judges rows.

    Args:
        collection: Their texts.
        retriever: Over these.
        embed: Embeds queries.
        replace: Whether the rows' negatives are dropped.
    """

    def __init__(
        self,
        collection: Collection,
        retriever: Retriever,
        embed: _Embed,
        *,
        replace: bool,
    ) -> None:
        self.collection = collection
        self.reranker: Reranker = DenseReranker()
        self._retriever, self._embed, self._replace = retriever, embed, replace

    def judge(self, rows: Sequence[Row]) -> Iterator[Judged]:
        """Yield the rows in batches with all that is known of their candidates.

        Raises:
            DamagedError: If a score is not finite.
        """
        for batch, questions, pool in self.pools(rows):
            logits = self.reranker.logits(questions, pool, self.collection.texts)
            if not np.isfinite(logits[pool.filled]).all():
                raise DamagedError(
                    "expected finite scores, found NaN or infinity; check the reranker's weights"
                )
            yield Judged(batch, questions, pool, logits, self.reranker.calibrate(logits))

    def pools(
        self, rows: Sequence[Row]
    ) -> Iterator[tuple[Sequence[Row], Sequence[Question], Pool]]:
        """Yield the rows in batches with their candidates."""
        vectors = self._embed([row.query for row in rows])
        for start in range(0, len(rows), self._retriever.batch):
            end = start + self._retriever.batch
            batch = rows[start:end]
            questions = [self.collection.question(row, replace=self._replace) for row in batch]
            yield batch, questions, self._retriever.pool(questions, vectors[start:end])


@contextmanager
def repeatable(settings: TeacherSettings) -> Iterator[None]:
    """Compute a dense retriever that learns from the texts themselves in one thread.

    The order of a sum depends on the number of threads, and what is at a margin on that: a run that
    goes on elsewhere would mine other negatives. An encoder's vectors are kept instead.
    """
    with threadpool_limits(1 if settings.encoder is None else None):
        yield


@contextmanager
def open_teacher(
    settings: TeacherSettings,
    rows: RowFile,
    collection: Collection,
    work: WorkFolder,
    stage: Stage,
    *,
    replace: bool = False,
) -> Iterator[Teacher]:
    """Embed the collection and make the reranker ready, for as long as its vectors are kept open.

    Args:
        settings: What ranks and scores.
        rows: The rows that the collection is of.
        collection: Their texts.
        work: Keeps vectors, and what was learned, for a run that goes on.
        stage: Shows what takes long.
        replace: Whether the rows' negatives are dropped.

    Raises:
        AnnaError: If a model cannot be used, or there are too few queries to learn from.
    """
    words = Words(collection.texts)
    with _vectors(settings, words, collection, work, stage) as (vectors, embed):
        retriever = Retriever(collection, words, vectors, settings.depth)
        teacher = Teacher(collection, retriever, embed, replace=replace)
        if settings.reranker == "learned":
            teacher.reranker = _learned(teacher, settings.seed, rows, work, stage)
        elif isinstance(settings.reranker, Path):
            teacher.reranker = CrossEncoderReranker(settings.reranker)
        yield teacher


@contextmanager
def _vectors(
    settings: TeacherSettings, words: Words, collection: Collection, work: WorkFolder, stage: Stage
) -> Iterator[tuple[np.ndarray, _Embed]]:
    """Give the (N, D) vectors of the collection's texts, and what embeds queries."""
    if settings.encoder is None:
        lsa = Lsa(words, settings.seed)
        yield lsa.vectors, lsa.embed
        return
    encoder = open_text_encoder(settings.encoder, settings.query_prompt)
    cache = settings.cache or work.path / "vectors"
    with open_store(cache, {"encoder": folder_sha256(settings.encoder)}, encoder.dim) as store:

        def stored(
            texts: Sequence[str], prompt: str, compute: _Embed, progress: Progress | None = None
        ) -> np.ndarray:
            keys = [key_of(prompt, text) for text in texts]
            return store.embed(keys, texts, compute, progress=progress)

        with stage("embed", "texts") as progress:
            vectors = stored(collection.texts, encoder.document_prompt, encoder.documents, progress)
        yield vectors, lambda texts: stored(texts, encoder.query_prompt, encoder.queries)


def _learned(
    teacher: Teacher, seed: int, rows: RowFile, work: WorkFolder, stage: Stage
) -> LearnedReranker:
    """Fit the learned reranker, or take what an earlier run fitted."""
    fold = folds_of(teacher.collection.answers.keys(), seed)

    def make() -> str:
        wanted = set(fit_keys(fold, seed))
        chosen: list[Row] = []
        for row in rows:
            key = text_key(row.query)
            if key in wanted:
                wanted.remove(key)
                chosen.append(row)
        pools = _reported(teacher.pools(chosen), len(chosen), stage)
        fitted = fit(pools, fold, seed)
        return json.dumps({"weights": fitted.weights.tolist(), "biases": fitted.biases.tolist()})

    stored = json.loads(work.text("reranker.json", make)[0])
    return LearnedReranker(np.array(stored["weights"]), np.array(stored["biases"]), fold)


def _reported(
    pools: Iterator[tuple[Sequence[Row], Sequence[Question], Pool]], total: int, stage: Stage
) -> Iterator[tuple[Sequence[Question], Pool]]:
    done = 0
    with stage("learn", "queries") as progress:
        for batch, questions, pool in pools:
            yield questions, pool
            done += len(batch)
            if progress is not None:
                progress(done, total)
