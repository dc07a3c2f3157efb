"""Rows of docstrings, a tiny encoder and a tiny cross-encoder, all made here."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from demo.corpus import Corpus, Pair

WriteRows = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteRows:
    """Writes rows, given as dicts, and returns the file."""

    def write(rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def pairs(tiny_corpus: Corpus) -> list[Pair]:
    return list(tiny_corpus)[:90]


@pytest.fixture
def rows(pairs: list[Pair], write: WriteRows) -> Path:
    return write([{"query": pair.query, "pos": [pair.document]} for pair in pairs])


@pytest.fixture(scope="session")
def tokenizer(pairs: list[Pair]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordLevelTrainer(vocab_size=2_000, special_tokens=specials)
    texts = [text for pair in pairs for text in (pair.query, pair.document)]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def encoder_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module = StaticEmbedding(tokenizer, embedding_dim=24)
    folder = tmp_path_factory.mktemp("encoders") / "static"
    SentenceTransformer(modules=[module], device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="session")
def reranker_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("rerankers") / "bert"
    config = BertConfig(
        vocab_size=2_000,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(folder)
    return folder
