"""What ranks: BM25 against bm25s itself, ranks, grams, and a reranker that never saw its query."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pytest
from anna_train.data.rows import RowFile
from anna_train.mining.collection import Question, collect, folder_sha256
from anna_train.mining.lexical import CharacterGrams, Lsa, Words
from anna_train.mining.pool import Pool, Retriever
from anna_train.mining.rerank import fit, folds_of

from anna_export.errors import InputError
from demo.corpus import Pair


def test_bm25_of_many_queries_is_that_of_bm25s_one_by_one(pairs: list[Pair]) -> None:
    documents, queries = [pair.document for pair in pairs], [pair.query for pair in pairs]
    index = bm25s.BM25(k1=1.2, b=0.75)
    words = {"token_pattern": r"\b\w+\b", "stopwords": None, "show_progress": False}
    index.index(bm25s.tokenize(documents, **words), show_progress=False)
    tokens = bm25s.tokenize([*queries, "zzzzz"], return_ids=False, **words)
    expected = np.stack([index.get_scores(row) for row in tokens])
    scores = Words(documents).bm25([*queries, "zzzzz"])
    # float32 sums of a few dozen words, in another order
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    assert not scores[-1].any()


@pytest.mark.slow
def test_vectors_have_unit_length_and_find_their_own_text(pairs: list[Pair]) -> None:
    documents = [pair.document for pair in pairs]
    words, grams = Words(documents), CharacterGrams(documents)
    lsa = Lsa(words, seed=0)
    for stored, again in (
        (lsa.vectors, lsa.embed(documents)),
        (words.vectors.toarray(), words.weigh(documents).toarray()),
        (grams.weigh(documents).toarray(), grams.weigh(documents[::-1]).toarray()[::-1]),
    ):
        np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(stored, again, atol=1e-6)
        assert ((stored @ stored.T).argmax(axis=1) == np.arange(len(stored))).all()


def test_grams_see_a_word_within_another_and_no_case() -> None:
    grams = CharacterGrams(["tokeniser", "cloud", "TOKENISE!"])
    first, second, third = (
        grams.weigh([text]).toarray()[0] for text in ("tokeniser", "cloud", "TOKENISE!")
    )
    assert first @ third > 0.3
    assert first @ second == 0
    assert grams.weigh([""]).nnz == 0


def pool_of(rows: Path, depth: int) -> tuple[Sequence[Question], Pool]:
    source = RowFile(rows)
    collection = collect(source)
    words = Words(collection.texts)
    lsa = Lsa(words, seed=0)
    questions = [collection.question(row) for row in source]
    vectors = lsa.embed([question.query for question in questions])
    return questions, Retriever(collection, words, lsa.vectors, depth).pool(questions, vectors)


def test_ranks_are_the_places_of_scores_and_the_union_holds_both(rows: Path) -> None:
    questions, pool = pool_of(rows, 10)
    for number, question in enumerate(questions):
        for ranks, scores in (
            (pool.bm25_rank[number], pool.bm25[number]),
            (pool.dense_rank[number], pool.dense[number]),
        ):
            ranked = np.flatnonzero(ranks)
            assert sorted(ranks[ranked]) == list(range(1, len(ranked) + 1))
            in_order = scores[ranked[np.argsort(ranks[ranked])]]
            # faiss adds up a product in another order
            assert (np.diff(in_order) <= 1e-6).all()
        text_indices = pool.texts[number][pool.filled[number]]
        assert set(question.answers) <= set(text_indices)
        assert len(set(text_indices)) == len(text_indices) <= 10 + 10 + len(question.answers)
        assert not (pool.candidate[number] & pool.answer[number]).any()


def synthetic(queries: int, signs: dict[str, float], unfound: bool = False) -> Any:
    """Pools of two candidates and a positive, told apart by the first feature's sign."""
    draw = np.random.default_rng(0)
    questions = [Question(f"query {n}", (0,), (), (0,), frozenset()) for n in range(queries)]
    features = draw.normal(size=(queries, 4, 7)).astype(np.float32)
    for number, question in enumerate(questions):
        features[number, 0, 0] += 4 * signs[question.query]
    # the last is a positive that neither retriever found
    features[:, 3] = 100
    rank = np.tile([1, 2, 3, 0], (queries, 1))
    everywhere = np.tile(np.arange(4), (queries, 1))
    answer = np.tile([True, False, False, unfound], (queries, 1))
    pool = Pool(
        texts=everywhere,
        bm25=rank.astype(np.float32),
        dense=rank.astype(np.float32),
        bm25_rank=rank,
        dense_rank=rank,
        answer=answer,
        candidate=(rank > 0) & ~answer,
        features=features,
    )
    return [(questions, pool)]


def test_no_query_is_scored_by_what_was_fitted_on_it() -> None:
    keys = [f"query {number}" for number in range(60)]
    fold = folds_of(keys, seed=0)
    assert sorted(fold.values()) == [0] * 30 + [1] * 30
    ups = fit(synthetic(60, dict.fromkeys(keys, 1.0)), fold, 0)
    # what tells a positive is turned around in one half alone
    turned = fit(synthetic(60, {key: -1.0 if fold[key] == 0 else 1.0 for key in keys}), fold, 0)
    np.testing.assert_array_equal(turned.weights[0], ups.weights[0])
    assert turned.weights[1][0] < -0.5 < 0.5 < ups.weights[1][0]


def test_a_positive_that_was_not_found_teaches_nothing() -> None:
    keys = [f"query {number}" for number in range(60)]
    fold, signs = folds_of(keys, 0), dict.fromkeys(keys, 1.0)
    with_it, without = (fit(synthetic(60, signs, unfound), fold, 0) for unfound in (True, False))
    np.testing.assert_array_equal(with_it.weights, without.weights)


def test_halves_depend_on_the_seed_and_not_on_the_order() -> None:
    keys = [f"query {number}" for number in range(40)]
    assert folds_of(keys, 0) == folds_of(keys[::-1], 0) != folds_of(keys, 1)


def test_a_half_without_a_retrieved_positive_is_refused() -> None:
    keys = [f"query {number}" for number in range(20)]
    ((questions, pool),) = synthetic(20, dict.fromkeys(keys, 1.0))
    pool.answer[:] = False
    with pytest.raises(InputError, match="found no positive among them; give more rows"):
        fit([(questions, pool)], folds_of(keys, 0), 0)


def test_a_model_is_known_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("same")
    assert folder_sha256(tmp_path / "one") == folder_sha256(tmp_path / "two")
    (tmp_path / "two" / "weights").write_text("other")
    assert folder_sha256(tmp_path / "one") != folder_sha256(tmp_path / "two")
