"""The base model's folder: what transformers and sentence-transformers make of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from anna_train.model.forward import Decoder, embed
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from demo.base_model import contrastive_loss, train_base
from demo.base_recipe import BaseRecipe
from demo.corpus import Corpus, Pair
from demo.output_cache import content_hash

TEXTS = ["Short.", "A text that is a good deal longer than the others, twice over.", "", "é漢🙂"]


@pytest.fixture(scope="module")
def sentence_model(tiny_base: Path) -> SentenceTransformer:
    return SentenceTransformer(str(tiny_base), device="cpu", model_kwargs={"dtype": torch.float32})


def test_sentence_transformers_gives_unit_vectors(sentence_model: SentenceTransformer) -> None:
    vectors = sentence_model.encode(TEXTS)
    assert vectors.shape == (4, 128)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_sentence_transformers_pools_the_last_token_as_training_does(
    tiny_base: Path, sentence_model: SentenceTransformer
) -> None:
    model = Decoder.of(AutoModel.from_pretrained(tiny_base, dtype=torch.float32))
    rows = AutoTokenizer.from_pretrained(tiny_base)(TEXTS)["input_ids"]
    with torch.no_grad():
        trained = embed(model, rows).numpy()
    # float32 with and without a mask: only the order of sums differs
    np.testing.assert_allclose(sentence_model.encode(TEXTS), trained, atol=2e-6)


def test_a_text_alone_has_the_vector_it_has_in_a_batch(tiny_base: Path) -> None:
    model = Decoder.of(AutoModel.from_pretrained(tiny_base, dtype=torch.float32))
    rows = AutoTokenizer.from_pretrained(tiny_base)(TEXTS)["input_ids"]
    with torch.no_grad():
        alone = torch.cat([embed(model, [row]) for row in rows])
        torch.testing.assert_close(embed(model, rows), alone, atol=2e-6, rtol=0)


def test_prompts_are_the_folders_own(sentence_model: SentenceTransformer) -> None:
    assert sentence_model.prompts["document"] == ""
    prompted = sentence_model.encode("x", prompt_name="query")
    assert not np.allclose(prompted, sentence_model.encode("x"), atol=1e-3)


def test_head_dim_is_not_dim_over_heads(tiny_base: Path) -> None:
    config = json.loads((tiny_base / "config.json").read_text())
    assert config["architectures"] == ["MistralModel"]
    assert config["head_dim"] % 2 == 0
    assert config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]


def test_weights_are_stored_in_bf16(tiny_base: Path) -> None:
    with safe_open(tiny_base / "model.safetensors", "pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}
    assert kinds == {"BF16"}


def test_tokenizer_config_names_what_frames_a_text(tiny_base: Path) -> None:
    config = json.loads((tiny_base / "tokenizer_config.json").read_text())
    framing = {name: config[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    assert framing == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
    }
    assert config["add_bos_token"] and config["add_eos_token"]


@pytest.mark.slow
def test_training_twice_gives_equal_files(tiny_corpus: Corpus, tmp_path: Path) -> None:
    recipe = BaseRecipe(steps=2, batch_pairs=4, train_tokens=12)
    for name in ("one", "other"):
        torch.rand(3)  # the state outside must not matter
        train_base(tiny_corpus.train, tmp_path / name, recipe)
    assert content_hash(tmp_path / "one") == content_hash(tmp_path / "other")


def test_training_separates_pairs(tmp_path: Path) -> None:
    words = ["apple", "river", "engine", "music", "winter", "paper", "doctor", "garden"]
    pairs = [Pair(f"about {word}", f"{word} is the subject here") for word in words]
    train_base(pairs, tmp_path / "base", BaseRecipe(steps=20, batch_pairs=8, train_tokens=16))
    model = SentenceTransformer(str(tmp_path / "base"), device="cpu")
    scores = (
        model.encode([pair.query for pair in pairs])
        @ model.encode([pair.document for pair in pairs]).T
    )
    assert (scores.argmax(axis=1) == np.arange(8)).all()


def test_loss_is_zero_for_orthogonal_pairs_and_log_n_for_equal_ones() -> None:
    apart = contrastive_loss(torch.eye(4), torch.eye(4), temperature=0.01)
    same = contrastive_loss(torch.ones(4, 4) / 2, torch.ones(4, 4) / 2, temperature=0.01)
    assert apart.item() == pytest.approx(0, abs=1e-6)
    assert same.item() == pytest.approx(np.log(4), abs=1e-6)
