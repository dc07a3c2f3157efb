"""Clients that people have get the vectors of `open_encoder`."""

from typing import Any

import numpy as np
import pytest

from anna_export import open_encoder, sentence_transformer
from anna_export.artifact.folder import Artifact
from anna_export.encoder import Encoder
from anna_export.serve.schema import OpenAIRequest
from tests.serve.running import Running

TEXTS = ["A man plays the guitar.", "", "été 漢字 🙂", "A man plays the guitar.", "x " * 90]
# other batches
CLOSE: dict[str, Any] = {"atol": 2e-6, "rtol": 0}


@pytest.fixture(scope="module")
def encoder(served_artifact: Artifact) -> Encoder:
    return open_encoder(served_artifact.folder)


@pytest.fixture(scope="module")
def openai_client(server: Running) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_openai(openai_client: Any, encoder: Encoder, encoding: str) -> None:
    answer = openai_client.embeddings.create(
        model="small", input=TEXTS, encoding_format=encoding, extra_body={"prompt_name": "passage"}
    )
    vectors = [entry.embedding for entry in answer.data]
    if encoding == "base64":
        import base64

        vectors = [np.frombuffer(base64.b64decode(text), "<f4") for text in vectors]
    np.testing.assert_allclose(np.array(vectors), encoder.encode(TEXTS, "passage"), **CLOSE)
    assert [entry.index for entry in answer.data] == list(range(len(TEXTS)))
    assert answer.model == "small" and answer.usage.prompt_tokens == answer.usage.total_tokens


def test_openai_by_default_and_one_text(openai_client: Any, encoder: Encoder) -> None:
    answer = openai_client.embeddings.create(model="small", input="one text")
    np.testing.assert_allclose(answer.data[0].embedding, encoder.encode("one text"), **CLOSE)


def test_openai_dimensions_are_cut_and_made_unit_again(
    openai_client: Any, encoder: Encoder
) -> None:
    answer = openai_client.embeddings.create(model="small", input=TEXTS, dimensions=7)
    expected = encoder.encode(TEXTS)[:, :7]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    # float32 values of a short vector are large
    vectors = [entry.embedding for entry in answer.data]
    np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)


def test_openai_token_ids_are_used_as_they_are(openai_client: Any, encoder: Encoder) -> None:
    rows = [[1, 500, 501, 2], [1, 7, 8, 2]]
    answer = openai_client.embeddings.create(model="small", input=rows)
    vectors = [entry.embedding for entry in answer.data]
    np.testing.assert_allclose(vectors, encoder.encode_ids(rows), **CLOSE)
    alone = openai_client.embeddings.create(model="small", input=rows[0])
    np.testing.assert_allclose(alone.data[0].embedding, encoder.encode_ids(rows[:1])[0], **CLOSE)


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [
        ("query", "query"),
        ("passage", "passage"),
        ("search_query", "query"),
        ("search_document", "passage"),
    ],
)
def test_openai_with_nvidias_and_coheres_words(
    openai_client: Any, encoder: Encoder, input_type: str, prompt: str
) -> None:
    long = "word " * 400

    def create(truncate: str) -> Any:
        words = {"input_type": input_type, "truncate": truncate}
        return openai_client.embeddings.create(model="small", input=["a", long], extra_body=words)

    vectors = [entry.embedding for entry in create("END").data]
    np.testing.assert_allclose(vectors, encoder.encode(["a", long], prompt), **CLOSE)
    import openai

    with pytest.raises(openai.BadRequestError, match="expected at most 256 tokens a text"):
        create("NONE")
    with pytest.raises(openai.BadRequestError, match="found truncate START; send truncate: true"):
        create("START")


def test_openai_with_null_in_every_field_that_nothing_was_set_for(
    openai_client: Any, encoder: Encoder
) -> None:
    fields = OpenAIRequest.model_fields
    nulls = {name: None for name in fields if not fields[name].is_required()}
    answer = openai_client.embeddings.with_raw_response.create(
        model="small", input="a", extra_body=nulls
    ).http_response.json()
    np.testing.assert_allclose(answer["data"][0]["embedding"], encoder.encode("a"), **CLOSE)


def test_openai_lists_and_retrieves_the_model(openai_client: Any) -> None:
    import openai

    (listed,) = openai_client.models.list()
    assert openai_client.models.retrieve("small") == listed and listed.id == "small"
    with pytest.raises(openai.NotFoundError, match="expected the model 'small', found 'org/large'"):
        openai_client.models.retrieve("org/large")


def test_langchains_openai_client(server: Running, encoder: Encoder) -> None:
    langchain = pytest.importorskip("langchain_openai")
    client = langchain.OpenAIEmbeddings(
        base_url=f"{server.url}/v1",
        api_key="none",
        model="small",
        check_embedding_ctx_length=False,
        max_retries=0,
    )
    np.testing.assert_allclose(client.embed_documents(TEXTS), encoder.encode(TEXTS), **CLOSE)
    np.testing.assert_allclose(client.embed_query("a"), encoder.encode("a"), **CLOSE)


def test_langchains_openai_client_with_ids_of_another_tokenizer_is_told_to_send_texts(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    langchain = pytest.importorskip("langchain_openai")
    openai, tiktoken = pytest.importorskip("openai"), pytest.importorskip("tiktoken")
    # its own tokenizers are downloaded; this one has a token for each byte
    ranks = {bytes([byte]): byte for byte in range(256)}
    tokenizer = tiktoken.Encoding("bytes", pat_str=".", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: tokenizer)
    client = langchain.OpenAIEmbeddings(
        base_url=f"{server.url}/v1", api_key="none", model="small", max_retries=0
    )
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embed_query("a text")


@pytest.fixture
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Hugging Face's client reach this machine's own server."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("_online")
def test_hugging_faces_client(server: Running, encoder: Encoder) -> None:
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(base_url=server.url)
    vectors = client.feature_extraction("a text", prompt_name="passage", truncate=True)
    np.testing.assert_allclose(vectors[0], encoder.encode("a text", "passage"), **CLOSE)
    raw = client.feature_extraction("a text", prompt_name="passage", normalize=False)
    np.testing.assert_array_equal(raw, vectors)  # the model's own vectors have unit length


@pytest.mark.usefixtures("_online")
def test_langchains_tei_client(server: Running, encoder: Encoder) -> None:
    langchain = pytest.importorskip("langchain_huggingface")
    client = langchain.HuggingFaceEndpointEmbeddings(model=server.url)
    np.testing.assert_allclose(client.embed_documents(TEXTS), encoder.encode(TEXTS), **CLOSE)


def test_sentence_transformers_gives_the_same(server: Running, served_artifact: Artifact) -> None:
    model = sentence_transformer(served_artifact.folder)
    vectors = server.embed(TEXTS, prompt_name="query")
    np.testing.assert_allclose(vectors, model.encode(TEXTS, prompt_name="query"), **CLOSE)
