"""Whatever is sent, the answer is never a 5xx of the server's own, and the server lives."""

import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.serve.running import Running

EXAMPLES = 40


def alive(server: Running) -> bool:
    return len(server.embed("still there", prompt_name="")[0]) == 40


@pytest.mark.slow
def test_nothing_that_the_schema_allows_breaks_it(server: Running) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            answer = case.call(timeout=30)
            assert answer.status_code < 500, (case.formatted_path, case.body, answer.text)

        check()
        tried += 1
    assert tried >= 9 and alive(server)


DEEP = 100_000
BODIES: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"input=a",
    "a list": b"[]",
    "null": b"null",
    "cut": b'{"input": "a',
    "deep list": b'{"input": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "invalid UTF-8": b'{"input": "\xff\xfe"}',
    "a lone surrogate": b'{"input": "\\ud800"}',
    "NaN": b'{"input": [NaN]}',
    "infinity": b'{"input": "a", "dimensions": Infinity}',
    "a huge number": b'{"input": [' + b"9" * 5000 + b"]}",
    "a float token": b'{"input": [1.5]}',
    "true": b'{"input": [true]}',
    "null text": b'{"input": [null]}',
    "mixed": b'{"input": ["a", 1, [2]]}',
    "an object": b'{"input": {"a": 1}}',
    "empty list": b'{"input": []}',
    "token out of range": b'{"input": [99999999]}',
    "2,049 inputs": json.dumps({"input": ["a"] * 2049}).encode(),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/tokenize"])
def test_bodies_that_are_wrong_are_refused(server: Running, path: str, body: bytes) -> None:
    if path != "/v1/embeddings":
        body = body.replace(b'"input"', b'"inputs"')
    answer = server.post(path, body)
    refused = {"/v1/embeddings": (400,), "/embed": (422,), "/tokenize": (422, 200)}[path]
    assert answer.status_code in refused, answer.text[:200]
    assert "\n" not in answer.text and alive(server)


def test_an_empty_text_and_odd_ones_have_vectors(server: Running) -> None:
    texts = ["", " ", "\0", "\u202e", "\ufeff", "𝕏" * 50, "a\r\nb", "</s><s>"]
    assert len(server.embed(texts)) == len(texts)


def test_50_megabytes_are_too_large(server: Running) -> None:
    body = b'{"input": "' + b"a" * (50 << 20) + b'"}'
    answer = server.post("/v1/embeddings", body)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "payload_too_large" and alive(server)


def test_a_length_that_is_a_lie_does_not_stop_it(server: Running) -> None:
    for length in (b"5", b"-1", b"99999999999", b"x"):
        with server.connect() as client:
            client.sendall(
                b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: " + length + b"\r\n\r\n{"
            )
            client.shutdown(1)
            client.recv(4096)
    assert alive(server)


def test_bytes_at_random_do_not_stop_it(server: Running) -> None:
    drawn = random.Random(0)
    for _ in range(50):
        with server.connect() as client:
            client.sendall(drawn.randbytes(drawn.randint(1, 400)))
    assert alive(server)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    text=st.text(max_size=200),
    fields=st.dictionaries(
        st.sampled_from(["dimensions", "embed_dtype", "truncate", "prompt_name", "model", "user"]),
        st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.integers()),
    ),
)
def test_fields_of_any_kind_are_taken_or_refused(
    server: Running, text: str, fields: dict[str, Any]
) -> None:
    answer = server.post("/v1/embeddings", {"input": text, **fields})
    assert answer.status_code in (200, 400, 404), answer.text
