"""Models that are not the usual one: without unit length, with a Dense module, cut at the start."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.encoder import Encoder
from anna_export.errors import DamagedError
from anna_export.serve.service import EmbeddingService
from anna_export.serve.worker import self_test
from anna_export.spec import Activation, Dense, Head, PoolingMode
from anna_export.text.batch import TokenBatch
from tests.serve.in_process import load, send, serving

DATA = Path(__file__).parents[1] / "data" / "schema2"
DIM, WIDTH = 32, 6
RAW = Head(PoolingMode.MEAN, dense=(Dense(DIM, WIDTH, False, Activation.TANH),), normalize=False)


def vector_of(ids: list[int]) -> np.ndarray:
    """Return what such a head gives a text: of any length but 1."""
    drawn = np.random.default_rng(ids).standard_normal(WIDTH)
    return (3 * drawn).astype(np.float32)


def changed(artifact: Artifact, **values: Any) -> Artifact:
    return replace(artifact, manifest=artifact.manifest.model_copy(update=values))


@pytest.fixture(scope="module")
def stored() -> Artifact:
    return open_artifact(DATA / "artifact-fp32")


@pytest.fixture
def raw(stored: Artifact, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingService]:
    """A model whose vectors have WIDTH numbers and no unit length."""
    with serving(changed(stored, spec=replace(stored.manifest.spec, head=RAW))) as service:
        load(service, monkeypatch, vector_of)
        yield service


def embed(service: EmbeddingService, path: str, **fields: Any) -> tuple[np.ndarray, str]:
    """Return the vector of a text, and what the answer says of its length."""
    ids = {"inputs": [[1, 5, 2]], "input": [[1, 5, 2]]}
    answer = send(service, "POST", path, json={**ids, **fields})
    assert answer.status_code == 200, answer.text
    value = answer.json()
    vectors = value if path == "/embed" else [entry["embedding"] for entry in value["data"]]
    return np.array(vectors[0], dtype=np.float32), answer.headers["x-normalized"]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 0}


def test_raw_vectors_are_the_models_own_unless_unit_ones_are_asked_for(
    raw: EmbeddingService,
) -> None:
    expected = vector_of([1, 5, 2])
    for path, fields, vector, normalized in (
        ("/v1/embeddings", {}, expected, "false"),
        ("/embed", {"normalize": False}, expected, "false"),
        ("/embed", {"normalize": True}, unit(expected), "true"),
        ("/embed", {}, unit(expected), "true"),  # as TEI does
        ("/v1/embeddings", {"dimensions": 4}, expected[:4], "false"),
        ("/embed", {"normalize": False, "dimensions": 4}, expected[:4], "false"),
        ("/embed", {"dimensions": 4}, unit(expected[:4]), "true"),
    ):
        got, header = embed(raw, path, **fields)
        np.testing.assert_allclose(got, vector, **CLOSE)
        assert header == normalized, (path, fields)


def test_a_head_is_described(raw: EmbeddingService) -> None:
    info = send(raw, "GET", "/info").json()
    assert (info["normalized"], info["dimensions"]) == (False, WIDTH)
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    (model,) = send(raw, "GET", "/v1/models").json()["data"]
    assert model["dimensions"] == WIDTH


def test_a_heads_width_is_the_most_dimensions(raw: EmbeddingService) -> None:
    answer = send(raw, "POST", "/embed", json={"inputs": "a", "dimensions": WIDTH + 1})
    assert answer.status_code == 422 and "at most 6 dimensions, found 7" in answer.text


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_integers_of_a_fixed_range_need_unit_vectors(raw: EmbeddingService, dtype: str) -> None:
    for path, field, body in (
        ("/v1/embeddings", "input", {}),
        ("/embed", "inputs", {"normalize": False}),
    ):
        answer = send(raw, "POST", path, json={field: "a", "embed_dtype": dtype, **body})
        assert f"expected unit vectors for {dtype}, whose range is fixed" in answer.text
    vector, _ = embed(raw, "/embed", embed_dtype=dtype)
    assert vector.shape == (WIDTH,)


class Backend:
    """An encoder whose vectors have the length 3."""

    name = compute_label = "stub"

    def __init__(self, artifact: Artifact) -> None:
        self.spec = artifact.manifest.spec

    def run(self, batch: TokenBatch) -> np.ndarray:
        rows = zip(batch.ids, batch.lengths, strict=True)
        return np.stack([vector_of(row[:length].tolist()) for row, length in rows])


def test_the_self_test_wants_unit_vectors_of_a_model_that_normalises_alone(
    stored: Artifact,
) -> None:
    spec = replace(stored.manifest.spec, head=RAW)
    backend = Backend(changed(stored, spec=spec))
    encoder = Encoder(backend, stored.tokeniser(), stored.manifest.prompts)
    assert self_test(encoder).backend == "stub"
    backend.spec = stored.manifest.spec
    with pytest.raises(DamagedError, match=r"expected unit vectors that are the same .* lengths"):
        self_test(encoder)


# -- the side that texts are cut at --


@pytest.fixture
def left(stored: Artifact, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingService]:
    """A model whose texts are cut at their start."""
    framing = replace(stored.manifest.framing, truncation_side="left", max_tokens=8)
    with serving(changed(stored, framing=framing, golden=[])) as service:
        # the vector is the token ids
        load(service, monkeypatch, lambda ids: np.array(ids, dtype=np.float32))
        yield service


def test_token_ids_are_cut_where_the_model_cuts(left: EmbeddingService) -> None:
    row = [1, *range(5, 15), 2]
    for word in (True, "START"):
        answer = send(left, "POST", "/embed", json={"inputs": row, "truncate": word})
        assert answer.json() == [[1, 9, 10, 11, 12, 13, 14, 2]]
        assert answer.headers["x-truncated-texts"] == "1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"truncate": "END"}, "found truncate END"),
        ({"truncate": True, "truncation_direction": "right"}, "found truncation_direction right"),
        ({"truncate": "START", "truncation_direction": "Right"}, "found truncation_direction"),
    ],
)
def test_a_side_that_the_model_does_not_cut_at_is_refused(
    left: EmbeddingService, fields: dict[str, Any], message: str
) -> None:
    answer = send(left, "POST", "/embed", json={"inputs": "a", **fields})
    assert answer.status_code == 422
    assert f"expected texts truncated at their start, as this model's are, {message}" in answer.text


def test_a_side_counts_only_where_texts_are_cut(left: EmbeddingService) -> None:
    body = {"inputs": [1, 5, 2], "truncate": False, "truncation_direction": "right"}
    assert send(left, "POST", "/embed", json=body).json() == [[1, 5, 2]]
