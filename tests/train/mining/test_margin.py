"""The adaptive margin: its terms, and the rules it covers, against sentence-transformers."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from anna_train.mining.margin import RULES, AdaptiveMargin, Rule
from anna_train.mining.mine import mine
from anna_train.mining.settings import MiningSettings, TeacherSettings
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from anna_export.errors import InputError
from demo.corpus import Pair

SCORES = np.array([[0.9, 0.5, 0.1, -0.3, 0.77], [0.2, -0.1, -0.11, -0.2, 0.0]])
CANDIDATES = np.array([[True, True, True, True, False], [True, True, True, True, False]])
POSITIVES = np.array([0.8, -0.1])


def test_a_candidate_is_kept_up_to_the_threshold_and_not_above() -> None:
    decision = AdaptiveMargin(absolute=0.3, relative=0, spread=0).decide(
        POSITIVES, np.array([[0.5, 0.5000001], [-0.4, -0.39]]), np.ones((2, 2), dtype=bool)
    )
    assert decision.threshold == pytest.approx([0.5, -0.4])
    assert decision.keep.tolist() == [[True, False], [True, False]]


def test_what_is_no_candidate_is_never_kept_and_counts_for_no_spread() -> None:
    margin = AdaptiveMargin(absolute=0, relative=0, spread=1)
    decision = margin.decide(POSITIVES, SCORES, CANDIDATES)
    assert not decision.keep[:, 4].any()
    assert decision.spread == pytest.approx(SCORES[:, :4].std(axis=1))


def test_the_share_is_of_the_positive_s_size_so_that_a_negative_score_lowers_the_threshold() -> (
    None
):
    decision = AdaptiveMargin(0, 0.5, 0).decide(POSITIVES, SCORES, CANDIDATES)
    assert decision.threshold == pytest.approx([0.4, -0.15])
    assert decision.keep[1].tolist() == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("margin", "rule"),
    [
        (AdaptiveMargin(0.5, 0.1, 0.1), Rule.MARGIN),
        (AdaptiveMargin(0.01, 0.9, 0.1), Rule.RELATIVE),
        (AdaptiveMargin(0.01, 0.01, 2), Rule.SPREAD),
    ],
)
def test_the_largest_term_decides_and_is_named(margin: AdaptiveMargin, rule: Rule) -> None:
    decision = margin.decide(POSITIVES[:1], SCORES[:1], CANDIDATES[:1])
    assert RULES[decision.rule[0]] is rule


def test_a_query_without_candidates_keeps_none() -> None:
    decision = AdaptiveMargin().decide(POSITIVES, SCORES, np.zeros_like(CANDIDATES))
    assert not decision.keep.any() and decision.spread.tolist() == [0, 0]


@pytest.mark.parametrize("terms", [(-0.1, 0, 0), (0, float("nan"), 0), (0, 0, float("inf"))])
def test_a_term_below_zero_or_not_finite_is_refused(terms: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"expected `(absolute|relative|spread)` to be 0 or more"):
        AdaptiveMargin(*terms)


@pytest.mark.parametrize("from_rank", [1, 4])
@pytest.mark.parametrize(
    ("margin", "peer"),
    [
        # as TopK-MarginPos
        (AdaptiveMargin(0.05, 0, 0), {"absolute_margin": 0.05}),
        (AdaptiveMargin(0.4, 0, 0), {"absolute_margin": 0.4}),
        # as TopK-PercPos, 95 %
        (AdaptiveMargin(0, 0.05, 0), {"relative_margin": 0.05}),
        (AdaptiveMargin(0, 0.6, 0), {"relative_margin": 0.6}),
        (AdaptiveMargin(0, 0, 0), {"absolute_margin": 0.0}),
    ],
)
def test_one_term_alone_mines_what_sentence_transformers_does(
    margin: AdaptiveMargin,
    peer: dict[str, float],
    from_rank: int,
    pairs: list[Pair],
    rows: Path,
    encoder_folder: Path,
) -> None:
    texts = len(pairs)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = mine_hard_negatives(
            Dataset.from_list([{"q": pair.query, "p": pair.document} for pair in pairs]),
            SentenceTransformer(str(encoder_folder), device="cpu"),
            range_min=from_rank - 1,
            range_max=texts,
            num_negatives=5,
            verbose=False,
            **peer,
        )
    wanted: dict[str, list[str]] = {pair.query: [] for pair in pairs}
    for row in expected:
        wanted[row["q"]].append(row["negative"])
    teacher = TeacherSettings(encoder=encoder_folder, reranker="none", depth=texts)
    settings = MiningSettings(teacher, margin, negatives=5, from_rank=from_rank)
    out = rows.with_name("mined.jsonl")
    mine(rows, out, settings)
    negatives = {row["query"]: row["neg"] for row in map(json.loads, out.open())}
    assert any(wanted.values()) and not all(len(texts) == 5 for texts in wanted.values())
    assert negatives == wanted
