"""What each precision costs the demo model: vectors, retrieval, and whether defaults are the best.

    python -m benchmarks.decided.precision  fp8, int8, int4 and alternatives; about 4 minutes
    python -m benchmarks.decided.precision --quick  the defaults alone, fewer queries

Queries are held out: no model was trained on them. nDCG@10 among all documents hangs on the few
right ones at ranks around 10, so its interval is wider than what is asked for, and it fails only
where that is not chance. Judged is nDCG@10 among 50: its mean over every choice of 50 documents
with the right one. Noise put into the vectors moves it a third as much, and its interval is a
seventh as wide. Intervals are of a paired bootstrap over queries, 95 %.
"""

import math
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from anna_export import quantise
from anna_export.backends import load_encoder
from anna_export.console.output import stage
from anna_export.encoder import Encoder
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.quantise import fp8
from anna_export.quantise.options import Quantised
from anna_export.quantise.scheme import Scheme
from anna_export.reference.load import open_reference
from anna_export.spec import Precision
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.vectors import compare, parity_texts
from benchmarks.lib.record import Figure, Results, main, models_option
from demo.corpus import read_corpus
from demo.models import DemoModels, heldout_texts, make_models

# Every machine's docstrings, not only those that the demo trains on.
ALL_PAIRS: Final = sys.maxsize
POOL: Final = 50
RESAMPLES: Final = 4000
# Largest change of nDCG@10 among POOL that a precision may make, in percent.
ALLOWED: Final = {Precision.FP8: 0.5, Precision.INT8: 0.5, Precision.INT4: 2.0}
ALONE: Final = 0.9999
HIGH_PRECISIONS: Final = (Precision.BF16, Precision.FP32)


@dataclass(frozen=True, slots=True)
class SchemeStorage(Quantised):
    """A storage of any scheme: it may be one that no option asks for."""

    variant: Scheme | None = None

    @property
    def scheme(self) -> Scheme:
        """The scheme."""
        assert self.variant is not None
        return self.variant


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to quantise; `default` where it is what an export makes unless told otherwise."""

    name: str
    scheme: Scheme
    default: bool = False


@dataclass(frozen=True, slots=True)
class Embedded:
    """What an encoder makes of N pairs.

    Args:
        queries: (N, D) vectors.
        documents: (N, D) vectors.
    """

    queries: np.ndarray
    documents: np.ndarray

    def gains(self, pool: int) -> np.ndarray:
        """Return each query's nDCG@10 among `pool` documents, (N,)."""
        return gain_by_rank(len(self.queries), pool)[ranks(self.queries, self.documents)]

    def losses(self, reference: "Embedded") -> np.ndarray:
        """Return 1 - cosine to the reference's vectors, (2 N,)."""
        ours = np.concatenate([self.queries, self.documents]).astype(np.float64)
        theirs = np.concatenate([reference.queries, reference.documents])
        return 1 - (ours * theirs).sum(axis=1)


def measure(arguments: Namespace) -> Results:
    """Export every variant and compare its vectors and rankings with the reference's."""
    models = make_models(arguments.models)
    queries, documents = _pairs(models, arguments.models, arguments.quick)
    reference = open_reference(models.base, models.adapter)
    expected = _embed(reference, queries, documents)
    figures: list[Figure] = []
    samples: dict[str, Any] = {
        "pairs": len(queries),
        "reference": {
            f"ndcg_among_{n}": float(expected.gains(n).mean()) for n in (POOL, len(queries))
        },
    }
    for variant in _variants(arguments.quick):
        print(variant.name, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="anna-precision-") as folder:
            encoder, described = _export(models, variant, Path(folder) / "artifact")
            vectors = _vector_figures(variant, reference, encoder)
            embedded = _embed(encoder, queries, documents)
        figures += vectors + _retrieval_figures(variant, embedded, expected)
        losses = embedded.losses(expected)
        samples[variant.name] = described | {
            "heldout_mean_loss": float(losses.mean()),
            "heldout_worst_cosine": float(1 - losses.max()),
        }
    return Results(figures, samples)


def _variants(quick: bool) -> list[Variant]:
    chosen = [
        Variant("fp8", quantise.load(Precision.FP8), default=True),
        Variant("int8", quantise.load(Precision.INT8), default=True),
        Variant("int4", quantise.load(Precision.INT4), default=True),
    ]
    if quick:
        return chosen
    others = [
        Variant(f"fp8, {dtype}", fp8.scheme(dtype))
        for dtype in HIGH_PRECISIONS
        if dtype != quantise.load(Precision.FP8).compute_dtype
    ]
    fp32_embedding = replace(quantise.load(Precision.INT8), embedding=None)
    return [*chosen, *others, Variant("int8, embedding fp32", fp32_embedding)]


def _pairs(models: DemoModels, folder: Path, quick: bool) -> tuple[list[str], list[str]]:
    """Return queries and the documents that answer them."""
    if quick:
        texts = heldout_texts(folder, 2 * models.figures.evaluated_pairs)
        return texts[::2], texts[1::2]
    # a pair's own content decides whether it is held out, so none of these was trained on
    pairs = read_corpus(ALL_PAIRS).heldout
    return [pair.query for pair in pairs], [pair.document for pair in pairs]


def _export(models: DemoModels, variant: Variant, out: Path) -> tuple[Encoder, dict[str, Any]]:
    stored = SchemeStorage(variant=variant.scheme)
    recipe = Recipe(models.base, models.adapter, out, stored, verify=False)
    artifact = export(recipe, stage).artifact
    quantised = artifact.manifest.quantised
    assert quantised is not None
    described = {"size_bytes": artifact.size_bytes, "high_precision": quantised.unquantized}
    return load_encoder(artifact, device="cpu"), described


def _embed(encoder: Encoder, queries: Sequence[str], documents: Sequence[str]) -> Embedded:
    return Embedded(encoder.encode(queries, "query"), encoder.encode(documents, "document"))


def _vector_figures(variant: Variant, reference: Encoder, encoder: Encoder) -> list[Figure]:
    assert isinstance(encoder.tokeniser, Tokeniser)
    thresholds, texts = variant.scheme.thresholds, parity_texts(encoder.tokeniser)
    parity = compare(reference, encoder, texts, thresholds=thresholds, method="every text by both")
    assert thresholds.max_loss is not None and parity.batch1_worst_cosine is not None
    loss, worst, alone = parity.loss, parity.worst_cosine, parity.batch1_worst_cosine
    name, allowed = variant.name, thresholds.max_loss
    return [
        Figure(f"{name}: mean loss (1 - cosine)", loss, "", f"<= {allowed}", loss <= allowed),
        Figure(f"{name}: worst cosine", worst, "", "shown", math.isfinite(worst)),
        Figure(
            f"{name}: alone and in a batch, worst cosine",
            alone,
            "",
            f">= {ALONE}",
            alone >= ALONE,
        ),
    ]


def _retrieval_figures(variant: Variant, embedded: Embedded, expected: Embedded) -> list[Figure]:
    allowed, count = ALLOWED[variant.scheme.precision], len(embedded.queries)
    narrow, interval = paired_change(embedded.gains(POOL), expected.gains(POOL))
    wide, chance = paired_change(embedded.gains(count), expected.gains(count))
    return [
        Figure(
            f"{variant.name}: nDCG@10 among {POOL}, change",
            narrow,
            "%",
            f"+-{allowed}" if variant.default else "shown",
            not variant.default or abs(narrow) <= allowed,
            interval,
        ),
        # judged only where it is more than chance
        Figure(
            f"{variant.name}: nDCG@10 among {count:,}, change",
            wide,
            "%",
            f"+-{allowed}, chance" if variant.default else "shown",
            not variant.default or (chance[0] <= allowed and chance[1] >= -allowed),
            chance,
        ),
    ]


def ranks(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return the place of each query's own document, from 1; equal scores stand before it."""
    scores = queries @ documents.T
    return (scores >= np.diagonal(scores)[:, None]).sum(axis=1)


def gain_by_rank(documents: int, pool: int) -> np.ndarray:
    """Return nDCG@10 among `pool` documents by the right one's rank among all, (documents + 1,).

    The mean over every choice of pool - 1 others: of those, a hypergeometric number stands before
    the right one. With all documents in the pool, the ordinary nDCG@10.
    """
    gains = np.zeros(documents + 1)
    choices = math.comb(documents - 1, pool - 1)
    for rank in range(1, documents + 1):
        for before in range(min(10, rank, pool)):
            ways = math.comb(rank - 1, before) * math.comb(documents - rank, pool - 1 - before)
            gains[rank] += ways / choices / math.log2(before + 2)
    return gains


def paired_change(gains: np.ndarray, expected: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Return the change of the mean in percent, and its 95 % interval over queries.

    Args:
        gains: (N,) gains of a candidate.
        expected: (N,) gains of the reference, query by query.
    """
    drawn = np.random.default_rng(0).integers(len(gains), size=(RESAMPLES, len(gains)))
    changes = 100 * (gains[drawn].sum(axis=1) / expected[drawn].sum(axis=1) - 1)
    low, high = np.quantile(changes, (0.025, 0.975))
    return 100 * float(gains.sum() / expected.sum() - 1), (float(low), float(high))


if __name__ == "__main__":
    sys.exit(
        main(
            "precision",
            measure,
            quick="The defaults alone, fewer queries.",
            options=models_option,
        )
    )
