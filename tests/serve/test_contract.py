"""The contract of the routes: what is answered, what is refused, and in whose words."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anna_export import open_encoder
from anna_export.artifact.folder import Artifact
from anna_export.encoder import Encoder
from anna_export.serve.api_keys import read_keys
from anna_export.serve.schema import OpenAIRequest, TeiRequest, TokenizeRequest
from anna_export.serve.vector_formats import integer_limit
from tests.serve.running import Running, running

CLOSE: dict[str, Any] = {"atol": 2e-6, "rtol": 0}


@pytest.fixture(scope="module")
def encoder(served_artifact: Artifact) -> Encoder:
    return open_encoder(served_artifact.folder)


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "query"),
        ({"prompt_name": "passage"}, "passage"),
        ({"prompt_name": ""}, ""),
        ({"input_type": "query"}, "query"),
        ({"input_type": "document"}, "passage"),
        ({"input_type": "passage"}, "passage"),
        ({"input_type": "search_query"}, "query"),
        ({"input_type": "search_document"}, "passage"),
    ],
)
def test_prompts_by_name_and_by_what_a_text_is(
    server: Running, encoder: Encoder, fields: dict[str, str], prompt: str
) -> None:
    np.testing.assert_allclose(
        server.embed(["a", "b"], **fields), encoder.encode(["a", "b"], prompt), **CLOSE
    )


def test_an_instruction_of_ones_own_is_worded_as_the_format_does(
    server: Running, encoder: Encoder
) -> None:
    from anna_export.text.prompt_formats import FORMATS

    prompt = FORMATS["e5"].prompt("Find the answer.")
    vectors = server.embed(["a"], instruction="Find the answer.")
    np.testing.assert_allclose(vectors, encoder.encode(["a"], prompt), **CLOSE)


def test_every_alias_of_a_route(server: Running) -> None:
    expected = server.embed("a")
    assert server.post("/", {"inputs": "a"}).json() == expected
    assert server.client.get("/ping").status_code == server.client.get("/health").status_code == 200


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("dimensions", [None, 13])
def test_types_are_those_of_sentence_transformers(
    server: Running, dtype: Any, dimensions: int | None
) -> None:
    from sentence_transformers.util import quantize_embeddings

    texts = ["a", "another text", "a third"]
    floats = np.array(server.embed(texts, dimensions=dimensions), dtype=np.float32)
    limit = integer_limit(floats.shape[1])
    ranges = np.array([[-limit] * floats.shape[1], [limit] * floats.shape[1]], dtype=np.float32)
    expected = quantize_embeddings(np.clip(floats, -limit, limit), dtype, ranges=ranges)
    vectors = np.array(server.embed(texts, dimensions=dimensions, embed_dtype=dtype))
    assert vectors.shape == expected.shape
    # a value on the edge of a step may fall on either side of it
    largest = 1 if "int8" in dtype else 0
    assert np.abs(vectors.astype(int) - expected.astype(int)).max() <= largest


def test_usage_tells_baked_tokens_apart(server: Running, encoder: Encoder) -> None:
    usage = server.post("/v1/embeddings", {"input": "a", "prompt_name": "query"}).json()["usage"]
    (row,) = encoder.tokenise(["a"], encoder.prompts.find("query"))
    assert row.prefix is not None
    assert usage["prompt_tokens"] == len(row.joined()) == usage["total_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == len(row.prefix)


def test_headers_tell_times_and_what_was_computed(server: Running) -> None:
    answer = server.post("/embed", {"inputs": ["a b c"] * 3, "prompt_name": ""})
    for name in ("compute", "queue", "inference", "tokenization", "total"):
        assert int(answer.headers[f"x-{name}-time"]) >= 0
    assert int(answer.headers["x-compute-tokens"]) == 3 * 5
    assert answer.headers["x-truncated-texts"] == "0"


def test_vectors_of_a_model_that_normalises_are_unit_and_said_to_be(
    server: Running, encoder: Encoder
) -> None:
    for path in ("/", "/embed"):
        # as Haystack's clients ask unless told otherwise
        answer = server.post(path, {"inputs": ["a"], "truncate": True, "normalize": False})
        np.testing.assert_allclose(answer.json(), encoder.encode(["a"]), **CLOSE)
        assert answer.headers["x-normalized"] == "true"
    answer = server.post("/v1/embeddings", {"input": "a"})
    assert answer.headers["x-normalized"] == "true"
    assert server.client.get("/info").json()["normalized"] is True


NULLABLE = [
    (path, name)
    for path, body in (
        ("/v1/embeddings", OpenAIRequest),
        ("/embed", TeiRequest),
        ("/", TeiRequest),
        ("/tokenize", TokenizeRequest),
    )
    for name, field in body.model_fields.items()
    if not field.is_required()
]


@pytest.mark.parametrize(("path", "name"), NULLABLE)
def test_null_in_an_optional_field_is_as_good_as_no_field(
    server: Running, path: str, name: str
) -> None:
    text = {"input" if path.startswith("/v1") else "inputs": "a"}
    answer = server.post(path, {**text, name: None})
    assert answer.status_code == 200, answer.text
    assert answer.json() == server.post(path, text).json()


def test_null_for_the_texts_is_as_bad_as_none(server: Running) -> None:
    refused = server.post("/v1/embeddings", {"input": None})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
    assert server.post("/tokenize", {"inputs": None}).status_code == 422


def test_a_side_that_texts_are_not_truncated_at_is_refused(server: Running) -> None:
    for side in ("left", "Left"):
        body = {"inputs": "a", "truncate": True, "truncation_direction": side}
        refused = server.post("/embed", body)
        assert refused.status_code == 422 and f"found truncation_direction {side}" in refused.text
        assert server.embed("a", truncate=False, truncation_direction=side)


def test_texts_are_truncated_in_nvidias_and_coheres_words(server: Running) -> None:
    long = "word " * 400
    cut = server.embed(long, truncate=True)
    for path, field in (("/embed", "inputs"), ("/", "inputs"), ("/v1/embeddings", "input")):
        answer = server.post(path, {field: long, "truncate": "END"})
        assert answer.headers["x-truncated-texts"] == "1"
        assert path.startswith("/v1") or answer.json() == cut
        for word, message in (
            ("NONE", "expected at most 256 tokens a text"),
            ("START", "expected texts truncated at their end, as this model's are, found truncate"),
            ("end", "found at truncate: 'end'; send true or false, END, START or NONE"),
        ):
            refused = server.post(path, {field: long, "truncate": word})
            assert refused.status_code in (400, 422) and message in refused.text


def test_a_text_that_is_too_long_is_refused_or_cut(server: Running, encoder: Encoder) -> None:
    long = "word " * 400
    refused = server.post("/v1/embeddings", {"input": ["a", long]})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["code"] == "text_too_long" and error["param"] == "input.1"
    assert error["message"].startswith("expected at most 256 tokens a text, prompt included, found")
    answer = server.post("/v1/embeddings", {"input": ["a", long], "truncate": True})
    assert answer.headers["x-truncated-texts"] == "1"
    vectors = [entry["embedding"] for entry in answer.json()["data"]]
    np.testing.assert_allclose(vectors, encoder.encode(["a", long]), **CLOSE)


def test_special_tokens_around_token_ids(server: Running, encoder: Encoder) -> None:
    vectors = server.embed([[500, 501]], add_special_tokens=True)
    np.testing.assert_allclose(vectors, encoder.encode_ids([[1, 500, 501, 2]]), **CLOSE)


def test_tokens_are_those_that_are_embedded(server: Running, encoder: Encoder) -> None:
    (tokens,) = server.post("/tokenize", {"inputs": "a <s> b", "prompt_name": "passage"}).json()
    (expected,) = encoder.tokeniser.ids(["a <s> b"], encoder.prompts.find("passage"))
    assert [token["id"] for token in tokens] == expected
    assert [token["special"] for token in tokens] == [True, *[False] * (len(tokens) - 2), True]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({}, "input", "Field required"),
    ({"input": []}, "input", "expected at least one text, found none"),
    ({"input": ["a", 3]}, "input", "expected a body as /openapi.json says"),
    ({"input": ["a"] * 2049}, "input", "expected at most 2,048 texts, found 2,049"),
    ({"input": [[]]}, "input.0", "expected token ids, found none"),
    (
        {"input": [[1, 32000, 2]]},
        "input.0",
        "expected token ids from 0 to 31999, found 32000, an id of another tokenizer; send texts",
    ),
    ({"input": [5, 6]}, "input.0", "begin with 1 (<s>) and end with 2 (</s>), found ids from 5"),
    ({"input": [-1]}, "input", "expected a body as /openapi.json says"),
    (
        {"input": [[1, *[5] * 255, 2]]},
        "input.0",
        "expected at most 256 token ids, found 257",
    ),
    (
        {"input": "a", "prompt_name": "no"},
        "prompt_name",
        "expected a known prompt (passage, query)",
    ),
    ({"input": "a", "input_type": "text"}, "input_type", "expected a body as /openapi.json says"),
    ({"input": "a", "prompt_name": "query", "instruction": "b"}, "prompt_name", "expected one of"),
    (
        {"input": [5], "prompt_name": "query"},
        "input",
        "expected texts behind a prompt",
    ),
    ({"input": "a", "dimensions": 41}, "dimensions", "expected at most 40 dimensions, found 41"),
    ({"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
    ({"input": "a", "embed_dtype": "int4"}, "embed_dtype", "'float32', 'int8'"),
]


@pytest.mark.parametrize(("body", "param", "message"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said_in_openais_shape(
    server: Running, body: dict[str, Any], param: str, message: str
) -> None:
    answer = server.post("/v1/embeddings", body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert message in error["message"] and "\n" not in error["message"]
    assert (error["param"] or "").startswith(param)


@pytest.mark.parametrize(("body", "param", "message"), WRONG[1:7], ids=range(6))
def test_what_is_wrong_is_said_in_teis_shape(
    server: Running, body: dict[str, Any], param: str, message: str
) -> None:
    answer = server.post("/embed", {"inputs": body["input"]})
    assert answer.status_code == 422
    assert answer.json()["error_type"] == "Validation" and message in answer.json()["error"]


def test_an_answer_is_sent_at_once(server: Running) -> None:
    times = []
    for _ in range(10):
        started = time.perf_counter()
        server.embed("a", prompt_name="")
        times.append(time.perf_counter() - started)
    # a head and a body that wait for one another take 40 ms
    assert min(times) < 0.03


def test_unknown_models_and_routes(server: Running) -> None:
    answer = server.post("/v1/embeddings", {"input": "a", "model": "large"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert server.client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert server.client.get("/embed").status_code == 405
    assert server.client.get("/nothing").json()["error_type"] == "NotFound"


def test_a_model_is_described_by_its_name(server: Running, served_artifact: Artifact) -> None:
    def counted() -> float:
        return server.metric("anna_requests_total", route="/v1/models/{model}")

    (listed,) = server.client.get("/v1/models").json()["data"]
    before = counted()
    artifact_id = served_artifact.manifest.artifact_id
    for name in ("small", artifact_id):
        assert server.client.get(f"/v1/models/{name}").json() == listed
    assert server.client.get("/v1/models/").json()["data"] == [listed]
    for name in ("large", "org/large"):
        refused = server.client.get(f"/v1/models/{name}")
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "model_not_found"
    assert counted() == before + 5


def test_info_tells_what_is_served_and_the_limits(
    server: Running, served_artifact: Artifact
) -> None:
    info = server.client.get("/info").json()
    assert info["model_id"] == "small"
    assert info["model_sha"] == served_artifact.manifest.artifact_id
    assert info["max_input_length"] == 256 and info["max_client_batch_size"] == 2048
    assert info["prompts"] == ["passage", "query"] and info["default_prompt"] == "query"
    assert info["compute"] == "fp32 on CPU"


def test_metrics_have_the_names_that_are_promised(server: Running) -> None:
    server.embed("counted", prompt_name="query")
    text = server.client.get("/metrics").text
    for name in (
        'anna_requests_total{code="200",route="/embed"}',
        'anna_request_duration_seconds_bucket{le="0.1",route="/embed"}',
        "anna_queue_duration_seconds_count",
        "anna_inference_duration_seconds_count",
        "anna_tokenize_duration_seconds_count",
        "anna_batch_tokens_bucket",
        "anna_batch_size_bucket",
        "anna_queue_depth",
        "anna_prefix_tokens_saved_total",
    ):
        assert name in text, name
    assert server.metric("anna_prefix_tokens_saved_total") > 0


def test_nothing_of_a_text_is_logged(server: Running) -> None:
    server.embed("unmistakable")
    server.post("/v1/embeddings", {"input": "unmistakable", "prompt_name": "unmistakable"})
    server.wait_for("request")
    assert not any("unmistakable" in line for line in server.lines)


@pytest.mark.slow
def test_keys_are_asked_for_where_there_are_some(served_artifact: Artifact, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# for the website\nfirst-key\n\nsecond-key\n")
    options = ("--api-key", "third-key", "--api-key-file", str(keys))
    with running(served_artifact.folder, *options) as server:
        server.wait_until_ready()

        def ask(**headers: str) -> Any:
            return server.post("/v1/embeddings", {"input": "a"}, headers=headers)

        for key in ("first-key", "second-key", "third-key"):
            assert ask(authorization=f"Bearer {key}").status_code == 200
        for wrong in ("Bearer fourth", "first-key", "Basic first-key", "Bearer"):
            assert ask(authorization=wrong).status_code == 401
        answer = ask()
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert server.client.get("/info").status_code == 401
        for open_to_all in ("/health", "/ready", "/metrics"):
            assert server.client.get(open_to_all).status_code == 200


def test_a_file_without_keys_is_refused(tmp_path: Path) -> None:
    from anna_export.errors import InputError, MissingError

    with pytest.raises(MissingError, match=r"expected API keys, one a line, in .*, found no file"):
        read_keys((), tmp_path / "absent")
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(InputError, match="found none"):
        read_keys((), tmp_path / "keys")


def test_schema_names_what_each_route_takes(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert {"OpenAIRequest", "TeiRequest", "TokenizeRequest"} <= set(schemas)
    body = document["paths"]["/v1/embeddings"]["post"]["requestBody"]
    assert json.dumps(body).count("#/components/schemas/OpenAIRequest") == 1
