"""What code around sentence-transformers asks a model for: tokenizer, length, outputs."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerFast

from anna_export.encoder import Encoder
from anna_export.errors import InputError
from anna_export.verify.texts import ODD_TEXTS, long_text


def test_tokenizer_gives_the_ids_that_are_computed(
    model: SentenceTransformer, encoder: Encoder
) -> None:
    texts = [*ODD_TEXTS, "a</s>b <s> c <unk>"]
    assert isinstance(model.tokenizer, PreTrainedTokenizerFast)
    expected = encoder.tokeniser.ids(texts)
    assert model.tokenizer(texts, truncation=True)["input_ids"] == expected
    batch = model.tokenizer(texts[:5], padding=True, truncation=True, return_tensors="pt")
    features = model.preprocess(texts[:5])
    assert batch.keys() == features.keys()
    assert all(torch.equal(batch[key], features[key]) for key in features)


def test_tokenizer_cuts_where_it_is_asked_to_and_counts_where_it_is_not(
    model: SentenceTransformer, encoder: Encoder
) -> None:
    text = long_text(120)
    assert len(model.tokenizer(text)["input_ids"]) > 64
    assert model.tokenizer([text], truncation=True)["input_ids"] == encoder.tokeniser.ids([text])
    model.max_seq_length = 24
    (cut,) = model.tokenizer([text], truncation=True)["input_ids"]
    assert cut == model.preprocess([text])["input_ids"][0].tolist() and len(cut) == 24


def test_tokenizer_is_what_a_splitter_of_texts_needs(model: SentenceTransformer) -> None:
    # as LangChain's SentenceTransformersTokenTextSplitter asks
    ids = model.tokenizer.encode(
        "one text of a few words", max_length=1 << 32, truncation="do_not_truncate"
    )
    assert ids[0] == model.tokenizer.bos_token_id and ids[-1] == model.tokenizer.eos_token_id
    assert model.tokenizer.decode(ids[1:-1]).strip() == "one text of a few words"


def test_another_tokenizer_is_refused(model: SentenceTransformer) -> None:
    with pytest.raises(InputError, match="export the model with it"):
        model.tokenizer = model.tokenizer


def test_no_max_seq_length_is_the_artifacts_own(model: SentenceTransformer) -> None:
    model.max_seq_length = 24
    model.max_seq_length = None
    assert model.max_seq_length == 64 == model.tokenizer.model_max_length


def test_token_embeddings_are_refused_in_words(model: SentenceTransformer) -> None:
    with pytest.raises(InputError, match="found token_embeddings: the artifact's graph pools"):
        model.encode(["a"], output_value="token_embeddings")


def test_all_output_is_what_the_module_gives(model: SentenceTransformer) -> None:
    (features,) = model.encode(["a"], output_value=None)
    assert set(features) == {"input_ids", "attention_mask", "sentence_embedding"}
