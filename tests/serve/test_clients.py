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
    found = [one.embedding for one in answer.data]
    if encoding == "base64":
        import base64

        found = [np.frombuffer(base64.b64decode(one), "<f4") for one in found]
    np.testing.assert_allclose(np.array(found), encoder.encode(TEXTS, "passage"), **CLOSE)
    assert [one.index for one in answer.data] == list(range(len(TEXTS)))
    assert answer.model == "small" and answer.usage.prompt_tokens == answer.usage.total_tokens


def test_openai_by_default_and_one_text(openai_client: Any, encoder: Encoder) -> None:
    answer = openai_client.embeddings.create(model="small", input="one text")
    np.testing.assert_allclose(answer.data[0].embedding, encoder.encode("one text"), **CLOSE)


def test_openai_dimensions_are_cut_and_made_unit_again(
    openai_client: Any, encoder: Encoder
) -> None:
    answer = openai_client.embeddings.create(model="small", input=TEXTS, dimensions=7)
    cut = encoder.encode(TEXTS)[:, :7]
    cut /= np.linalg.norm(cut, axis=1, keepdims=True)
    # float32 values of a short vector are large
    np.testing.assert_allclose([one.embedding for one in answer.data], cut, atol=1e-5, rtol=0)


def test_openai_token_ids_are_used_as_they_are(openai_client: Any, encoder: Encoder) -> None:
    rows = [[1, 500, 501, 2], [7, 8]]
    answer = openai_client.embeddings.create(model="small", input=rows)
    found = [one.embedding for one in answer.data]
    np.testing.assert_allclose(found, encoder.encode_ids(rows), **CLOSE)
    alone = openai_client.embeddings.create(model="small", input=rows[0])
    np.testing.assert_allclose(alone.data[0].embedding, encoder.encode_ids(rows[:1])[0], **CLOSE)


def test_openai_lists_the_model(openai_client: Any) -> None:
    assert [one.id for one in openai_client.models.list()] == ["small"]


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
    found = client.feature_extraction("a text", prompt_name="passage", truncate=True)
    np.testing.assert_allclose(found[0], encoder.encode("a text", "passage"), **CLOSE)


@pytest.mark.usefixtures("_online")
def test_langchains_tei_client(server: Running, encoder: Encoder) -> None:
    langchain = pytest.importorskip("langchain_huggingface")
    client = langchain.HuggingFaceEndpointEmbeddings(model=server.url)
    np.testing.assert_allclose(client.embed_documents(TEXTS), encoder.encode(TEXTS), **CLOSE)


def test_sentence_transformers_gives_the_same(server: Running, served_artifact: Artifact) -> None:
    model = sentence_transformer(served_artifact.folder)
    found = server.embed(TEXTS, prompt_name="query")
    np.testing.assert_allclose(found, model.encode(TEXTS, prompt_name="query"), **CLOSE)
