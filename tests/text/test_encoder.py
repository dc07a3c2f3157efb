"""Texts to vectors: order, batching, padding, prompts, and what is refused."""

import collections
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anna_export.encoder import Encoder
from anna_export.errors import DamagedError, InputError
from anna_export.spec import EmbeddingSpec, read_spec
from anna_export.text.batch import TokenBatch
from anna_export.text.batching import FREE_WASTE_TOKENS, MAX_WASTE, BatchLimits, batches_by_length
from anna_export.text.framing import read_framing
from anna_export.text.prompts import Prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.texts import ODD_TEXTS, long_text, ordinary_texts
from tests.support.refusals import one_line

FAST = settings(max_examples=40, derandomize=True, deadline=None)
LENGTHS = st.lists(st.integers(1, 300), max_size=70)
POOL = (*ODD_TEXTS, *ordinary_texts(14), long_text(150))


class Angles:
    """A backend whose vector is an angle made of a row's ids and their order; counts its work."""

    name, compute_label = "angles", "fp32"

    def __init__(self, spec: EmbeddingSpec) -> None:
        self.spec = replace(spec, dim=2)
        self.shapes: list[tuple[int, ...]] = []
        self.padding = 0

    def run(self, batch: TokenBatch) -> np.ndarray:
        self.shapes.append(batch.ids.shape)
        self.padding += int((batch.mask == 0).sum())
        position = np.arange(1, batch.width + 1)
        angle = (batch.ids * batch.mask * position).sum(axis=1) % 6007 / 1000
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    @property
    def computed(self) -> int:
        return sum(rows * width for rows, width in self.shapes)


@pytest.fixture(scope="module")
def tokeniser(base: Path) -> Tokeniser:
    return Tokeniser.open(base, read_framing(base, read_spec(base), None))


@pytest.fixture
def angles(base: Path) -> Angles:
    return Angles(read_spec(base))


# -- order and batches --


@FAST
@given(
    texts=st.lists(st.sampled_from(POOL), max_size=20), budget=st.sampled_from([1, 17, 256, 4096])
)
def test_vectors_come_in_the_order_of_the_texts(
    base: Path, tokeniser: Tokeniser, texts: list[str], budget: int
) -> None:
    encoder = Encoder(Angles(read_spec(base)), tokeniser, limits=BatchLimits(budget))
    vectors = encoder.encode(texts)
    assert vectors.shape == (len(texts), 2) and vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        assert (vector == encoder.encode(text)).all()


def test_equal_texts_are_computed_once(angles: Angles, tokeniser: Tokeniser) -> None:
    vectors = Encoder(angles, tokeniser).encode(["one", "two", "one", "one"])
    assert sum(rows for rows, _ in angles.shapes) == 2
    assert (vectors[0] == vectors[2]).all() and (vectors[0] == vectors[3]).all()
    assert (vectors[0] != vectors[1]).any()


def test_progress_counts_distinct_texts_to_the_end(angles: Angles, tokeniser: Tokeniser) -> None:
    reports: list[tuple[int, int]] = []
    encoder = Encoder(angles, tokeniser, limits=BatchLimits(64))
    encoder.encode([*POOL, *POOL], progress=lambda done, total: reports.append((done, total)))
    assert len(reports) == len(angles.shapes) > 3
    assert reports == sorted(reports) and reports[-1] == (len(POOL), len(POOL))


@FAST
@given(lengths=LENGTHS, budget=st.sampled_from([1, 30, 299, 1000, 4096]))
def test_batches_hold_every_index_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = batches_by_length(lengths, BatchLimits(budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        width = max(lengths[index] for index in batch)
        assert width * len(batch) <= budget or len(batch) == 1


@FAST
@given(lengths=LENGTHS, budget=st.sampled_from([1, 30, 299, 1000, 4096]))
def test_padding_stays_within_its_share_whatever_the_lengths(
    lengths: list[int], budget: int
) -> None:
    computed = sum(
        max(lengths[index] for index in batch) * len(batch)
        for batch in batches_by_length(lengths, BatchLimits(budget))
    )
    assert computed - sum(lengths) <= max(MAX_WASTE * computed, FREE_WASTE_TOKENS)


@FAST
@given(length=st.integers(1, 50), count=st.integers(1, 90), budget=st.integers(50, 900))
def test_texts_of_one_length_fill_whole_batches(length: int, count: int, budget: int) -> None:
    full = budget // length
    sizes = sorted(len(batch) for batch in batches_by_length([length] * count, BatchLimits(budget)))
    assert len(sizes) == -(-count // full)


def test_longest_texts_come_first() -> None:
    # the largest batch then shows at once whether memory is enough
    batches = batches_by_length([3, 300, 40, 41, 299, 5], BatchLimits(600))
    assert batches[0] == [1, 4] and batches[-1][-1] == 0


@FAST
@given(
    lengths=st.lists(st.integers(1, 800), min_size=1, max_size=80),
    prefix=st.integers(1, 3000),
    pairs=st.sampled_from([1 << 16, 1 << 19, None]),
    alone=st.sampled_from([64, 256, None]),
)
def test_batches_behind_a_prefix_keep_within_every_limit(
    lengths: list[int], prefix: int, pairs: int | None, alone: int | None
) -> None:
    batches = batches_by_length(lengths, BatchLimits(4096, pairs, alone), prefix)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        width = max(lengths[index] for index in batch)
        if len(batch) > 1:
            assert len(batch) * width <= 4096
            assert alone is None or width <= alone
            assert pairs is None or len(batch) * width * (prefix + width) <= pairs


def test_only_a_cpu_computes_long_texts_behind_a_prefix_one_by_one() -> None:
    lengths = [300] * 8
    assert len(batches_by_length(lengths, BatchLimits(), 512)) == 8
    assert len(batches_by_length(lengths, BatchLimits(pairs=1 << 24, single=None), 512)) == 1
    assert len(batches_by_length(lengths, BatchLimits(pairs=None, single=None), 512)) == 1


@pytest.mark.parametrize("unit", ["alone", "many"])
def test_empty_row_of_ids_is_refused(angles: Angles, tokeniser: Tokeniser, unit: str) -> None:
    rows: Sequence[Sequence[int]] = [[]] if unit == "alone" else [[1, 2], [], [1]]
    with pytest.raises(ValueError, match=r"expected lengths in 1\.\."):
        Encoder(angles, tokeniser).encode_ids(rows)


def test_row_longer_than_the_longest_sequence_is_refused(
    angles: Angles, tokeniser: Tokeniser
) -> None:
    encoder, limit = Encoder(angles, tokeniser), tokeniser.framing.max_tokens
    encoder.encode_ids([[3] * limit])
    with pytest.raises(InputError, match=f"at most {limit} tokens a row, found {limit + 1}"):
        encoder.encode_ids([[3], [3] * (limit + 1)])


# -- padding waste on real lengths --


def docstrings() -> list[str]:
    """Read the texts between triple quotes of the standard library: most are docstrings."""
    texts: list[str] = []
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")
        texts += re.findall(r'"""(.+?)"""', source, re.DOTALL)
    return texts


def task_texts() -> Iterator[tuple[str, str]]:
    """Yield the pattern of a file and the column of its texts, of unlike kinds of task."""
    yield "Banking77Classification/train-*", "text"
    yield "STSBenchmark/test-*", "sentence1"
    yield "TRECCOVID/corpus-*", "text"
    yield "CQADupstackGamingRetrieval/corpus-*", "text"


@pytest.fixture(scope="module")
def lengths_of(tokeniser: Tokeniser) -> Callable[[list[str]], list[int]]:
    def lengths(texts: list[str]) -> list[int]:
        random.Random(0).shuffle(texts)
        return [len(row) for row in tokeniser.ids(texts[:5000])]

    return lengths


def require_little_padding(lengths: list[int]) -> None:
    assert len(lengths) > 900, "too few texts to say anything"
    for count in (64, 500, 5000):
        for budget in (512, 4096, 16384):
            taken = lengths[:count]
            batches = batches_by_length(taken, BatchLimits(budget))
            computed = sum(taken[batch[0]] * len(batch) for batch in batches)
            assert 1 - sum(taken) / computed <= 0.05, (count, budget)
            # what padding is for: far fewer batches than texts, where the budget allows them
            assert len(batches) <= max(count / 3, 1.2 * sum(taken) / budget) or budget == 512


def test_docstrings_are_padded_by_at_most_5_percent(
    lengths_of: Callable[[list[str]], list[int]],
) -> None:
    require_little_padding(lengths_of(docstrings()))


@pytest.mark.parametrize(("file", "column"), task_texts(), ids=lambda value: value.split("/")[0])
def test_benchmark_texts_are_padded_by_at_most_5_percent(
    lengths_of: Callable[[list[str]], list[int]], file: str, column: str
) -> None:
    folders = [parent / "shared/mteb/data" for parent in Path(__file__).parents]
    data = next((folder for folder in folders if folder.is_dir()), None)
    if data is None:
        pytest.skip("no shared/mteb/data beside the checkout")
    table = pq.read_table(next(data.glob(file)), columns=[column])
    require_little_padding(lengths_of(table[column].to_pylist()))


def test_encoder_computes_what_its_batches_say(angles: Angles, tokeniser: Tokeniser) -> None:
    texts = docstrings()[:300]
    Encoder(angles, tokeniser).encode(texts)
    assert max(rows * width for rows, width in angles.shapes) <= 4096
    assert 0 < angles.padding <= 0.05 * angles.computed


# -- the same vector in any company --


@settings(max_examples=15, derandomize=True, deadline=None)
@given(
    members=st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=7),
    padding=st.integers(0, 9),
)
def test_vector_is_the_same_alone_and_in_any_batch(
    encoder: Encoder, alone: np.ndarray, members: list[int], padding: int
) -> None:
    rows = encoder.tokeniser.ids([POOL[index] for index in members])
    padded = [*rows, [9] * (max(map(len, rows)) + padding)]
    batch = TokenBatch.of_rows(padded, encoder.tokeniser.framing.pad_id)
    vectors = encoder.backend.run(batch)[:-1]
    expected = alone[members]
    # fp32: another batch changes only the order of sums; the components are about 0.15
    assert np.abs(vectors - expected).max() <= 1e-6
    assert (vectors.astype(np.float64) * expected).sum(axis=1).min() >= 0.999999


@pytest.fixture(scope="module")
def alone(encoder: Encoder) -> np.ndarray:
    """(N, D) of the pool, each text computed by itself."""
    return np.stack([encoder.encode(text) for text in POOL])


@pytest.mark.parametrize("budget", [1, 64, 513, 100_000])
def test_vectors_do_not_depend_on_the_token_budget(
    encoder: Encoder, alone: np.ndarray, budget: int
) -> None:
    other = Encoder(encoder.backend, encoder.tokeniser, limits=BatchLimits(budget))
    # as above: only the order of sums differs
    np.testing.assert_allclose(other.encode(POOL), alone, rtol=0, atol=1e-6)


def test_vectors_of_unlike_texts_differ(alone: np.ndarray) -> None:
    # without this, a backend that returns one vector for all would pass the rest
    close = alone.astype(np.float64) @ alone.T - np.eye(len(alone))
    assert close.max() < 0.9999


# -- prompts --


def test_prompt_stands_before_the_text(encoder: Encoder) -> None:
    prompts = Prompts.of_fronts({"query": "Instruct: find\nQuery: ", "document": ""})
    prompted = Encoder(encoder.backend, encoder.tokeniser, prompts)
    vectors = prompted.encode(["a b", "c"], "query")
    expected = encoder.encode(["Instruct: find\nQuery: a b", "Instruct: find\nQuery: c"])
    assert (vectors == expected).all()
    assert (prompted.encode(["a b"], "document") == encoder.encode(["a b"])).all()


def test_default_prompt_is_used_where_none_is_named(encoder: Encoder) -> None:
    prompts = Prompts.of_fronts({"query": "Query: "}, default="query")
    vector = Encoder(encoder.backend, encoder.tokeniser, prompts).encode("a b")
    assert (vector == encoder.encode("Query: a b")).all()


def test_unknown_prompt_is_refused_with_the_known_ones(
    angles: Angles, tokeniser: Tokeniser
) -> None:
    encoder = Encoder(angles, tokeniser, Prompts.of_fronts({"sts": "s", "query": "q"}))
    with pytest.raises(InputError, match=r"known prompt \(query, sts\), found 'qurey'"):
        encoder.encode(["a"], "qurey")
    assert not angles.shapes


# -- odd calls --


def test_one_text_gives_one_vector(encoder: Encoder) -> None:
    vector = encoder.encode("a text")
    assert vector.shape == (encoder.dim,)
    assert (vector == encoder.encode(["a text"])[0]).all()


@pytest.mark.parametrize(
    "texts",
    [
        (text for text in "ab"),
        map(str, "ab"),
        {"a", "b"},
        {"a": "first", "b": "second"},
        np.array("a"),
        np.array([["a"], ["b"]]),
        None,
        3,
    ],
    ids="generator map set dict scalar table none number".split(),
)
def test_texts_without_number_or_order_are_refused_by_what_they_are(
    encoder: Encoder, texts: Any
) -> None:
    with pytest.raises(InputError) as error:
        encoder.encode(texts)
    assert f"expected a text or a list of texts, found a {type(texts).__name__};" in one_line(error)


@pytest.mark.parametrize("kind", [tuple, np.array, collections.deque])
def test_any_sequence_of_texts_is_taken(encoder: Encoder, kind: Callable[[list[str]], Any]) -> None:
    texts = ["a text", "another", "a text"]
    np.testing.assert_array_equal(encoder.encode(kind(texts)), encoder.encode(texts))


def test_no_texts_give_no_vectors(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_lone_surrogate_is_refused_by_its_place_among_all_texts(
    angles: Angles, tokeniser: Tokeniser
) -> None:
    with pytest.raises(InputError, match="surrogate in text 3"):
        Encoder(angles, tokeniser).encode(["a", "a", "b", "\udc80"])


def test_vector_that_is_not_finite_is_refused_by_its_place_among_all_texts(
    base: Path, tokeniser: Tokeniser
) -> None:
    (bad,) = tokeniser.ids(["bad"])

    class Overflows(Angles):
        def run(self, batch: TokenBatch) -> np.ndarray:
            vectors = super().run(batch)
            vectors[(batch.ids[:, : len(bad)] == bad).all(axis=1), 1] = np.inf
            return vectors

    encoder = Encoder(Overflows(read_spec(base)), tokeniser)
    assert np.isfinite(encoder.encode(["good"])).all()
    with pytest.raises(
        DamagedError, match=r"for text 3 \('.*'\) in fp32; export in a wider precision"
    ):
        encoder.encode(["good", "good", "fine", "bad"])
