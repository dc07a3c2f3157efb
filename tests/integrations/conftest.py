"""An artifact without prompts, as an encoder and as a sentence-transformers model."""

from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

import anna_export
from anna_export.encoder import Encoder
from tests.support.types import MakeArtifact


@pytest.fixture(scope="module")
def folder(base: Path, make_artifact: MakeArtifact) -> Path:
    return make_artifact(base).folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return anna_export.open_encoder(folder)


@pytest.fixture
def model(folder: Path) -> SentenceTransformer:
    return anna_export.sentence_transformer(folder)
