"""A base model and an adapter of a few training steps, made once for all training tests."""

import os
from collections.abc import Iterator
from pathlib import Path

# before anything imports huggingface_hub, which reads it once
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from demo.base_model import train_base
from demo.base_recipe import BaseRecipe
from demo.corpus import Corpus, collect_pairs, source_files, source_folders

TINY_BASE = BaseRecipe(steps=6, batch_pairs=12, train_tokens=16)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_corpus() -> Corpus:
    return Corpus.split(collect_pairs(source_files(source_folders()[:1]), 200))


@pytest.fixture(scope="session")
def tiny_base(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    train_base(tiny_corpus.train, folder, TINY_BASE)
    return folder
