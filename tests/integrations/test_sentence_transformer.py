"""The artifact inside sentence-transformers: the same vectors by every way in."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import anna_export
from anna_export.artifact.folder import Artifact
from anna_export.console.output import stage
from anna_export.encoder import Encoder
from anna_export.errors import AnnaError, InputError, MissingError
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.quantise.options import Fp32
from anna_export.verify.texts import ODD_TEXTS, long_text, ordinary_texts

TEXTS = [*ODD_TEXTS, *ordinary_texts(9), long_text(120)]
PROMPTS = {"query": "Instruct: find the text\nQuery: ", "document": ""}


@pytest.fixture(scope="module")
def folder(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose model brings prompts, one of them the default."""
    root = tmp_path_factory.mktemp("st")
    prompted = Path(shutil.copytree(base, root / "base"))
    settings = {"prompts": PROMPTS, "default_prompt_name": "query"}
    (prompted / "config_sentence_transformers.json").write_text(json.dumps(settings))
    recipe = Recipe(prompted, adapter, root / "artifact", Fp32(), verify=False)
    return export(recipe, stage).artifact.folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return anna_export.open_encoder(folder)


@pytest.fixture(scope="module", params=["ours", "theirs"])
def model(request: pytest.FixtureRequest, folder: Path) -> SentenceTransformer:
    if request.param == "ours":
        return anna_export.sentence_transformer(folder)
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def same(vectors: np.ndarray, expected: np.ndarray) -> bool:
    # its batches are other than ours: the order of sums differs
    return vectors.dtype == np.float32 and bool(np.abs(vectors - expected).max() <= 1e-6)


def test_vectors_are_those_of_open_encoder(model: SentenceTransformer, encoder: Encoder) -> None:
    assert same(model.encode(TEXTS), encoder.encode(TEXTS))
    assert same(model.encode(TEXTS[5]), encoder.encode(TEXTS[5]))


@pytest.mark.parametrize("name", ["query", "document"])
def test_prompts_are_those_of_open_encoder(
    model: SentenceTransformer, encoder: Encoder, name: str
) -> None:
    assert model.prompts == PROMPTS and model.default_prompt_name == "query"
    expected = encoder.encode(TEXTS, name)
    assert same(model.encode(TEXTS, prompt_name=name), expected)
    assert not same(encoder.encode(TEXTS, "document"), encoder.encode(TEXTS, "query"))


def test_query_and_document_calls_pick_their_prompts(
    model: SentenceTransformer, encoder: Encoder
) -> None:
    assert same(model.encode_query(TEXTS), encoder.encode(TEXTS, "query"))
    assert same(model.encode_document(TEXTS), encoder.encode(TEXTS, "document"))


def test_prompt_may_be_given_as_text(model: SentenceTransformer, encoder: Encoder) -> None:
    expected = encoder.encode([f"Title: {text}" for text in TEXTS], "document")
    assert same(model.encode(TEXTS, prompt="Title: "), expected)


def test_default_prompt_is_used_where_none_is_named(
    model: SentenceTransformer, encoder: Encoder
) -> None:
    assert same(model.encode(TEXTS), encoder.encode(TEXTS, "query"))


def test_tensors_and_batches_of_any_size(model: SentenceTransformer, encoder: Encoder) -> None:
    vectors = model.encode(TEXTS, batch_size=3, convert_to_tensor=True)
    assert isinstance(vectors, torch.Tensor)
    assert same(vectors.numpy(), encoder.encode(TEXTS))


def test_it_says_its_dimensions_and_similarity(
    model: SentenceTransformer, encoder: Encoder
) -> None:
    assert model.get_embedding_dimension() == encoder.dim
    assert model.similarity_fn_name == "cosine"
    vectors = model.encode(TEXTS[2:5])
    assert same(model.similarity(vectors, vectors).numpy(), vectors @ vectors.T)


def test_truncated_dimensions_are_cut(model: SentenceTransformer) -> None:
    assert same(model.encode(TEXTS, truncate_dim=16), model.encode(TEXTS)[:, :16])


def test_no_texts_give_no_vectors(model: SentenceTransformer) -> None:
    assert len(model.encode([])) == 0


def test_shorter_max_seq_length_cuts_and_keeps_eos(folder: Path, encoder: Encoder) -> None:
    model = anna_export.sentence_transformer(folder)
    assert model.max_seq_length == encoder.tokeniser.framing.max_tokens
    model.max_seq_length = 24
    ids = model.preprocess([long_text(120)], prompt="")["input_ids"][0].tolist()
    assert len(ids) == 24 and ids[-1] == encoder.tokeniser.framing.eos_id
    assert ids[:-1] == encoder.tokeniser.ids([long_text(120)])[0][:23]


def test_longer_max_seq_length_than_the_artifacts_is_refused(folder: Path) -> None:
    model = anna_export.sentence_transformer(folder)
    with pytest.raises(InputError, match=r"max_seq_length in 8\.\.4096, found 4097"):
        model.max_seq_length = 4097


def test_what_is_no_text_is_refused(model: SentenceTransformer) -> None:
    with pytest.raises(AnnaError, match="texts as str"):
        model[0].preprocess(["fine", {"image": "a.png"}])


def test_saving_again_says_to_copy_the_folder(model: SentenceTransformer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a copy of the folder"):
        model.save(str(tmp_path / "again"))


def test_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="expected an artifact"):
        anna_export.sentence_transformer(tmp_path)


def test_library_refuses_our_module_without_its_flag(folder: Path) -> None:
    # what the README says of sentence-transformers 6; if this passes one day, the README is wrong
    with pytest.raises(Exception, match="trust_remote_code"):
        SentenceTransformer(str(folder), device="cpu")


def test_without_the_library_the_extra_is_named(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.delitem(sys.modules, "anna_export.integrations.sentence_transformer")
    with pytest.raises(AnnaError, match=r"install anna-export\[train\]"):
        anna_export.sentence_transformer(artifact.folder)
