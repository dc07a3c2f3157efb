"""Which of the waiting texts are computed together."""

import random

from hypothesis import given
from hypothesis import strategies as st

from anna_export.serve.choose_batch import WINDOW, choose_batch
from anna_export.text.batching import FREE_WASTE_TOKENS, MAX_WASTE, BatchLimits

LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=60)


@given(LENGTHS, st.integers(16, 2048), st.sampled_from([0, 5, 512]))
def test_the_oldest_is_in_a_batch_that_fits_with_little_padding(
    lengths: list[int], budget: int, prefix: int
) -> None:
    indices = choose_batch(lengths, BatchLimits(budget), prefix)
    assert 0 in indices and len(set(indices)) == len(indices)
    chosen = [lengths[index] for index in indices]
    assert len(chosen) <= BatchLimits(budget).rows(max(chosen), prefix)
    computed = max(chosen) * len(chosen)
    assert computed - sum(chosen) <= max(MAX_WASTE * computed, FREE_WASTE_TOKENS)


@given(LENGTHS, st.integers(600, 2048))
def test_nothing_fits_in_that_has_the_same_length(lengths: list[int], budget: int) -> None:
    indices = choose_batch(lengths, BatchLimits(budget), 0)
    chosen = [lengths[index] for index in indices]
    left = [length for index, length in enumerate(lengths) if index not in indices]
    if len(chosen) < BatchLimits(budget).rows(max(chosen), 0):
        assert max(chosen) not in left


def test_texts_of_one_length_fill_the_budget() -> None:
    assert len(choose_batch([64] * 100, BatchLimits(1024), 0)) == 16


def test_a_text_longer_than_the_budget_goes_alone() -> None:
    assert choose_batch([3000, 5, 6], BatchLimits(1024), 0) == [0]


def test_a_long_queue_costs_no_more_than_its_window() -> None:
    random.seed(0)
    lengths = [random.randint(1, 500) for _ in range(100_000)]
    assert max(choose_batch(lengths, BatchLimits(), 0)) < WINDOW
