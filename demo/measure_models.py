"""How well the demonstration's models do, beside TF-IDF: docstrings, and MTEB data where given."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from anna_train.run.retrieval import retrieval
from peft import PeftModel
from sentence_transformers import SentenceTransformer

from anna_export.console.quiet import quiet_libraries
from anna_export.text.prompt_formats import FORMATS
from demo.corpus import Corpus
from demo.figures import Figures, Scores
from demo.repeatable import repeatable
from demo.task_scores import NEIGHBOURS, Encode, banking, retrieved, sts, tf_idf

# Held-out pairs that the models are evaluated on: every query against this many documents.
EVALUATED_PAIRS: Final = 500
FEW_SHOT: Final = "query-few-shot"
_STS: Final = "Retrieve semantically similar text."
_BANKING: Final = "Given a online banking query, find the corresponding intents"


@dataclass(frozen=True, slots=True)
class _Models:
    """The base, and the adapter on it, in fp32."""

    base: SentenceTransformer
    tuned: SentenceTransformer

    def both(self, texts: Sequence[str], front: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Return both models' vectors of texts behind a prompt."""
        base, tuned = (model.encode(texts, prompt=front) for model in (self.base, self.tuned))
        return base, tuned

    def encoders(self, front: str) -> tuple[Encode, Encode]:
        """Return what embeds texts behind a prompt, by both models."""
        base, tuned = (partial(model.encode, prompt=front) for model in (self.base, self.tuned))
        return base, tuned


def measure(corpus: Corpus, base: Path, adapter: Path, task_data: Path | None) -> Figures:
    """Embed held-out texts with the base and with the adapter on it, in float32.

    Args:
        corpus: Its held-out pairs are evaluated.
        base: The base's folder.
        adapter: The adapter's, with its prompts.
        task_data: A folder of MTEB test data (`data/TASK/*.parquet`); None: none is measured.

    Raises:
        MissingError: If there is no such data in the folder.
    """
    pairs = sorted(corpus.heldout, key=lambda pair: pair.digest)[:EVALUATED_PAIRS]
    queries, documents = [pair.query for pair in pairs], [pair.document for pair in pairs]
    with quiet_libraries(), repeatable(0):
        models = _Models(_load(base), _load(base))
        models.tuned[0].model = PeftModel.from_pretrained(models.tuned[0].model, adapter)
        fronts = SentenceTransformer(str(adapter), device="cpu", local_files_only=True).prompts
        plain = models.base.encode(queries)
        zero_shot = models.both(queries, fronts["query"])
        few_shot = models.both(queries, fronts[FEW_SHOT])
        document_vectors = models.both(documents)
        tasks = {
            "docstrings": Scores(
                "nDCG@10",
                retrieved(queries, documents, tf_idf),
                retrieval(zero_shot[0], document_vectors[0]).ndcg_at_10,
                retrieval(few_shot[0], document_vectors[0]).ndcg_at_10,
                retrieval(zero_shot[1], document_vectors[1]).ndcg_at_10,
                retrieval(few_shot[1], document_vectors[1]).ndcg_at_10,
            )
        }
        if task_data is not None:
            tasks |= {"STS-B": _sts(models, task_data), "Banking77": _banking(models, task_data)}
    return Figures(
        train_pairs=len(corpus.train),
        evaluated_pairs=len(pairs),
        base=retrieval(plain, document_vectors[0]),
        base_prompted=retrieval(zero_shot[0], document_vectors[0]),
        tuned=retrieval(zero_shot[1], document_vectors[1]),
        document_cosine=_mean_cosine(*document_vectors),
        query_cosine=_mean_cosine(*zero_shot),
        tasks=tasks,
    )


def _load(base: Path) -> SentenceTransformer:
    return SentenceTransformer(
        str(base), device="cpu", model_kwargs={"dtype": torch.float32}, local_files_only=True
    )


def _sts(models: _Models, folder: Path) -> Scores:
    """Return Spearman's correlation of cosines with the test set's scores, zero-shot."""
    base, tuned = models.encoders(FORMATS["e5"].prompt(_STS).front)
    lexical = sts(folder, tf_idf)
    return Scores(
        "Spearman", lexical, sts(folder, lambda _: base), None, sts(folder, lambda _: tuned), None
    )


def _banking(models: _Models, folder: Path) -> Scores:
    """Return the share of test queries that their nearest training queries name rightly."""
    base, tuned = models.encoders(FORMATS["e5"].prompt(_BANKING).front)
    return Scores(
        f"{NEIGHBOURS}-NN accuracy",
        banking(folder, tf_idf),
        banking(folder, lambda _: base),
        None,
        banking(folder, lambda _: tuned),
        None,
    )


def _mean_cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float((left * right).sum(axis=1).mean())
