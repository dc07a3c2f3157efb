"""Whether verify's path to mteb gives plain mteb's scores, of a known encoder on real data.

The encoder is all-MiniLM-L6-v2, from a package. Its vectors are embedded through verify's store and
model; then the same vectors are looked up by as little of a model as mteb takes.

python -m benchmarks.statistics.mteb_path --task-data DIR  a folder; ten tasks took 12 minutes
python -m benchmarks.statistics.mteb_path --quick ...  those of few texts, in 2
"""

import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction

from anna_export.files.vector_store import open_store
from anna_export.text.prompts import NO_PROMPT, Prompt
from anna_export.verify.mteb_model import MtebModel
from anna_export.verify.scoring import score
from anna_export.verify.stored_encoder import StoredEncoder
from anna_export.verify.task_data import TaskSource, load, sources
from benchmarks.lib.record import Figure, Results, main, say
from tests.support.minilm import MiniLM

EQUAL = 1e-9
QUICK = ("BIOSSES", "STSBenchmark", "TwentyNewsgroupsClustering.v2")
# a pair's two texts, of 9,334 pairs, and how many of them differ
TWITTER = (18668, 8383)
META = ModelMeta.create_empty(
    {"name": "known/minilm", "revision": "1", "similarity_fn_name": ScoringFunction.COSINE}
)


class Plain(AbsEncoder):
    """Looks every text's vector up."""

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.vectors = vectors
        self.mteb_model_meta = META

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        """Return (N, 384) float32 vectors."""
        return np.asarray([self.vectors[text] for batch in inputs for text in batch["text"]])


def measure(arguments: Namespace) -> Results:
    """Score every task both ways."""
    if arguments.task_data is None:
        not_run = [{"name": "all", "why": "it needs real MTEB data; give --task-data"}]
        return Results([], {}, not_run)
    names = QUICK if arguments.quick else ()
    samples = {}
    with tempfile.TemporaryDirectory() as scratch:
        for source in sources("quick", names, arguments.task_data):
            samples[source.name] = both_ways(source, Path(scratch))
            say(f"{source.name}: {samples[source.name]}")
    off = max(abs(sample["score"] - sample["plain"]) for sample in samples.values())
    again = sum(sample["embedded"] - sample["distinct"] for sample in samples.values())
    figures = [
        Figure("largest difference from plain mteb", off, "score", f"<= {EQUAL}", off <= EQUAL),
        Figure("texts embedded twice", again, "", "0", again == 0),
        *(
            Figure(f"{name}: texts embedded, of {sample['requested']:,}", sample["embedded"], "",
                   f"{sample['distinct']}", sample["embedded"] == sample["distinct"])
            for name, sample in samples.items()
        ),
    ]  # fmt: skip
    if twitter := samples.get("TwitterURLCorpus"):
        assert (twitter["requested"], twitter["embedded"]) == TWITTER
    return Results(figures, samples)


def both_ways(source: TaskSource, scratch: Path) -> dict[str, Any]:
    """Return a task's score by both ways, and how many texts were asked for and embedded."""
    started, encoder, requested = time.perf_counter(), MiniLM(), list[str]()
    with open_store(scratch / source.name, {}, encoder.dim) as store:
        stored = StoredEncoder(encoder, store, {})

        def embed(texts: Sequence[str], prompt: Prompt) -> np.ndarray:
            requested.extend(texts)
            return stored.embed(texts, prompt)

        scored = score(source, MtebModel(embed, lambda *_: NO_PROMPT, META), scratch / "results")
        distinct = sorted(set(requested))
        vectors = dict(zip(distinct, stored.embed(distinct, NO_PROMPT), strict=True))
        embedded = stored.embedded
    (result,) = mteb.evaluate(
        Plain(vectors), load(source), cache=None, show_progress_bar=False, co2_tracker=False,
        encode_kwargs={"batch_size": 512, "show_progress_bar": False},
    ).task_results  # fmt: skip
    return {
        "score": float(scored.score),
        "plain": float(result.get_score()),
        "requested": len(requested),
        "distinct": len(distinct),
        "embedded": embedded,
        "seconds": time.perf_counter() - started,
    }


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--task-data", type=Path, help="Tasks and data.")


if __name__ == "__main__":
    sys.exit(main("mteb-path", measure, quick="Tasks of few texts.", options=_options))
