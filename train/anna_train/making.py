"""What the demonstration makes: the base, the adapter, and figures on held-out pairs."""

from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer

from anna_train.base_model import train_base
from anna_train.corpus import Corpus
from anna_train.evaluate import Figures, retrieval
from anna_train.lora import tune_lora
from anna_train.progress import quiet_libraries
from anna_train.recipes import MAX_TOKENS, BaseRecipe, LoraRecipe
from anna_train.repeatable import repeatable
from anna_train.tokenizer import build_tokenizer, check_exact, load_sentencepiece

# Held-out pairs that the models are evaluated on: every query against this many documents.
EVALUATED_PAIRS = 500


def make_base(corpus: Corpus, folder: Path, recipe: BaseRecipe) -> None:
    """Hold the tokenizer to sentencepiece on every text, then train the base.

    Raises:
        InputError: If a text's token ids differ.
    """
    pieces = load_sentencepiece()
    texts = [text for pair in corpus for text in (pair.query, pair.document)]
    check_exact(build_tokenizer(pieces, MAX_TOKENS), pieces, texts)
    with quiet_libraries():
        train_base(corpus.train, folder, recipe)


def make_adapter(corpus: Corpus, base: Path, folder: Path, recipe: LoraRecipe) -> None:
    """Tune the adapter on the base.

    Raises:
        InputError: If a LoRA pair was not trained.
    """
    with quiet_libraries():
        tune_lora(corpus.train, base, folder, recipe)


def measure(corpus: Corpus, base: Path, adapter: Path) -> Figures:
    """Embed held-out pairs with the base and with the adapter on it, in float32."""
    pairs = sorted(corpus.heldout, key=lambda pair: pair.digest)[:EVALUATED_PAIRS]
    queries, documents = [pair.query for pair in pairs], [pair.document for pair in pairs]
    with quiet_libraries(), repeatable(0):
        model = SentenceTransformer(
            str(base), device="cpu", model_kwargs={"dtype": torch.float32}, local_files_only=True
        )
        plain = model.encode(queries)
        before = model.encode(queries, prompt_name="query"), model.encode(documents)
        model[0].model = PeftModel.from_pretrained(model[0].model, adapter)
        after = model.encode(queries, prompt_name="query"), model.encode(documents)
    return Figures(
        train_pairs=len(corpus.train),
        evaluated_pairs=len(pairs),
        base=retrieval(plain, before[1]),
        base_prompted=retrieval(*before),
        tuned=retrieval(*after),
        document_cosine=_mean_cosine(before[1], after[1]),
        query_cosine=_mean_cosine(before[0], after[0]),
    )


def _mean_cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum(axis=1).mean())
