"""Clients that people have get the vectors of `open_encoder`."""

from typing import Any

import numpy as np
import pytest

from anna_export import open_encoder, sentence_transformer
from anna_export.artifact.folder import Artifact
from anna_export.encoder import Encoder
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
    rows = [[1, 500, 501, 2], [7, 8]]
    answer = openai_client.embeddings.create(model="small", input=rows)
    vectors = [entry.embedding for entry in answer.data]
    np.testing.assert_allclose(vectors, encoder.encode_ids(rows), **CLOSE)
    alone = openai_client.embeddings.create(model="small", input=rows[0])
    np.testing.assert_allclose(alone.data[0].embedding, encoder.encode_ids(rows[:1])[0], **CLOSE)


def test_openai_lists_the_model(openai_client: Any) -> None:
    assert [model.id for model in openai_client.models.list()] == ["small"]


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


@pytest.mark.usefixtures("_online")
def test_langchains_tei_client(server: Running, encoder: Encoder) -> None:
    langchain = pytest.importorskip("langchain_huggingface")
    client = langchain.HuggingFaceEndpointEmbeddings(model=server.url)
    np.testing.assert_allclose(client.embed_documents(TEXTS), encoder.encode(TEXTS), **CLOSE)


def test_sentence_transformers_gives_the_same(server: Running, served_artifact: Artifact) -> None:
    model = sentence_transformer(served_artifact.folder)
    vectors = server.embed(TEXTS, prompt_name="query")
    np.testing.assert_allclose(vectors, model.encode(TEXTS, prompt_name="query"), **CLOSE)
