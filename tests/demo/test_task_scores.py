"""Scores of any vectors: what an oracle reaches, and what plain scikit-learn and scipy give."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from anna_export.errors import MissingError
from demo.task_scores import banking, retrieved, sts, tf_idf
from demo.tasks import write_data

FIRST = ["a man plays", "the card is lost", "two dogs run", "it rains"]
SECOND = ["a man sings", "the card is gone", "a stock fell", "it rains today"]
GRADES = [3.0, 4.0, 0.5, 4.5]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pairs = pa.table({"sentence1": FIRST, "sentence2": SECOND, "score": GRADES})
    write_data(tmp_path / "data" / "STSBenchmark", {"default": {"test": pairs}})
    texts = [f"{word} {index}" for word in ("card", "rate") for index in range(6)]
    labelled = pa.table({"text": texts, "label": [0] * 6 + [1] * 6})
    splits = {"train": labelled, "test": labelled.slice(4, 4)}
    write_data(tmp_path / "data" / "Banking77Classification", {"default": splits})
    return tmp_path


def test_sts_by_tf_idf_is_that_of_scikit_learn(data: Path) -> None:
    words = TfidfVectorizer(sublinear_tf=True).fit([*FIRST, *SECOND])
    cosines = np.diagonal(cosine_similarity(words.transform(FIRST), words.transform(SECOND)))
    wanted = spearmanr(cosines, GRADES).statistic
    assert sts(data, tf_idf) == pytest.approx(wanted, abs=1e-6)


def test_words_that_name_a_label_name_it_rightly(data: Path) -> None:
    assert banking(data, tf_idf) == 1.0


def test_vectors_that_name_the_other_label_are_wrong(data: Path) -> None:
    sides: list[list[str]] = []

    def swapped(texts: list[str]) -> np.ndarray:
        sides.append(texts)
        first = [text.startswith("card") == (len(sides) == 1) for text in texts]
        return np.array([[value, not value] for value in first], dtype=np.float32)

    assert banking(data, lambda _: swapped) == 0.0


def test_each_query_finds_the_document_in_its_place() -> None:
    assert retrieved(FIRST, FIRST, tf_idf) == pytest.approx(1.0)
    assert retrieved(FIRST, FIRST[::-1], tf_idf) < 0.7


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"expected \*test-\*\.parquet in .*STSBenchmark"):
        sts(tmp_path, tf_idf)
