"""A known encoder on real MTEB data: our path gives plain mteb's scores, and the published ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from sklearn.feature_extraction.text import HashingVectorizer

from anna_export.files.vector_store import open_store
from anna_export.text.prompts import NO_PROMPT, Prompt
from anna_export.verify.estimators import score as estimated
from anna_export.verify.mteb_model import MtebModel
from anna_export.verify.scoring import score
from anna_export.verify.stored_encoder import StoredEncoder
from anna_export.verify.task_data import TaskSource, load, sources
from tests.support.minilm import MiniLM

META = ModelMeta.create_empty(
    {"name": "known/minilm", "revision": "1", "similarity_fn_name": ScoringFunction.COSINE}
)


class Letters:
    """Embeds a text by its letters, three at a time, a thousand times as fast as MiniLM.

    That our path changes no score of an encoder's vectors can be seen of any; all tasks by MiniLM
    are in benchmarks/statistics/mteb_path.py.
    """

    dim = 384

    def __init__(self) -> None:
        self.texts = 0
        self._hashing = HashingVectorizer(
            n_features=self.dim, analyzer="char_wb", ngram_range=(3, 3), dtype=np.float32
        )

    def encode(self, texts: Sequence[str], prompt: Prompt) -> np.ndarray:
        """Return (N, 384) float32 vectors, in order."""
        self.texts += len(texts)
        return self._hashing.transform([prompt.front + text for text in texts]).toarray()


# one of every category; the whole split where there is one, whose score is published
TASKS: dict[str, tuple[type[MiniLM] | type[Letters], float | None]] = {
    "BIOSSES": (MiniLM, None),
    "STSBenchmark": (MiniLM, 0.8203),
    "TwitterURLCorpus": (Letters, None),
    "TwentyNewsgroupsClustering.v2": (Letters, None),
    "CQADupstackGamingReranking": (Letters, None),
    "SummEvalSummarization.v2": (Letters, None),
}


class Plain(AbsEncoder):
    """As little as mteb asks for: every text looked up, or embedded, each time it is asked for."""

    def __init__(self, embed: Any) -> None:
        self.embed = embed
        self.mteb_model_meta = META

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        return np.asarray(self.embed([text for batch in inputs for text in batch["text"]]))


def plain_scores(source: TaskSource, embed: Any) -> dict[str, Any]:
    task = load(source)
    (result,) = mteb.evaluate(
        Plain(embed), task, cache=None, show_progress_bar=False, co2_tracker=False,
        encode_kwargs={"batch_size": 32, "show_progress_bar": False},
    ).task_results  # fmt: skip
    (entry,) = result.scores["test"]
    return entry


@pytest.fixture(scope="module", params=TASKS)
def source(request: pytest.FixtureRequest, real: Path) -> TaskSource:
    (source,) = sources("quick", [request.param], real)
    return source


def test_scores_are_plain_mtebs_and_every_text_is_embedded_once(
    source: TaskSource, tmp_path: Path
) -> None:
    kind, published = TASKS[source.name]
    encoder, asked_texts = kind(), list[str]()
    with open_store(tmp_path / "vectors", {}, encoder.dim) as store:
        stored = StoredEncoder(encoder, store, {})

        def embed(texts: Sequence[str], prompt: Prompt) -> np.ndarray:
            asked_texts.extend(texts)
            return stored.embed(texts, prompt)

        scored = score(source, MtebModel(embed, lambda *_: NO_PROMPT, META), tmp_path / "results")
        assert encoder.texts == stored.embedded == len(set(asked_texts))
        assert stored.requested == len(asked_texts)
        if source.name == "TwitterURLCorpus":
            assert (stored.embedded, stored.requested) == (8383, 18668)

        # the same vectors, replayed without our path
        vectors = dict(zip(asked_texts, stored.embed(asked_texts, NO_PROMPT), strict=True))
        plain = plain_scores(source, lambda texts: [vectors[text] for text in texts])
        assert scored.score == pytest.approx(plain["main_score"], abs=1e-9)
        samples = [estimated(sample.estimator) for sample in scored.samples.values()]
        assert np.mean(samples) == pytest.approx(plain["main_score"], abs=1.1e-5)
        assert encoder.texts == len(set(asked_texts))

    if published is not None:
        assert scored.score == pytest.approx(published, abs=5e-5)


def test_own_batching_stays_within_the_noise_floor(real: Path, tmp_path: Path) -> None:
    (source,) = sources("quick", ["BIOSSES"], real)

    def ours(batch: int, name: str) -> float:
        encoder = MiniLM(batch)
        with open_store(tmp_path / name, {}, encoder.dim) as store:
            model = MtebModel(
                StoredEncoder(encoder, store, {}, shuffled=name == "again").embed,
                lambda *_: NO_PROMPT,
                META,
            )
            return score(source, model, tmp_path / "results").score

    first, again = ours(64, "first"), ours(17, "again")
    batched = MiniLM(32)
    plain = plain_scores(source, lambda texts: batched.encode(texts, NO_PROMPT))["main_score"]
    # of float32: the order of sums differs
    assert abs(first - plain) <= max(abs(first - again), 1e-6)
