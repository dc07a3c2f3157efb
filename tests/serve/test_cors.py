"""Pages of other origins: which may call the server, and read what it answers."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from anna_export.artifact.folder import Artifact
from anna_export.errors import InputError
from anna_export.serve.config import ServerConfig
from anna_export.serve.service import EmbeddingService
from tests.serve.in_process import send, serving
from tests.serve.running import running

PAGE, OTHER = "app://obsidian.md", "https://example.org"
KEY = "Bearer key"


@pytest.fixture
def service(served_artifact: Artifact, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A service with a key, whose model is not loaded; its origins are PAGE, or the parameter."""
    origins = getattr(request, "param", (PAGE, "http://localhost:3000"))
    with serving(served_artifact, api_keys=("key",), cors_allow_origins=origins) as service:
        yield service


def preflight(service: EmbeddingService, origin: str, **headers: str) -> httpx.Response:
    """Ask as a browser does before a page's POST; the headers are those of OpenAI's client."""
    usual = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    return send(service, "OPTIONS", "/v1/embeddings", headers={**usual, **headers})


def test_a_preflight_is_answered_without_a_key(service: EmbeddingService) -> None:
    answer = preflight(service, PAGE)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"]
    assert {"authorization", "content-type", "x-stainless-lang"} <= set(allowed.split(","))


def test_a_page_elsewhere_may_call_a_server_of_its_own_network(service: EmbeddingService) -> None:
    answer = preflight(service, PAGE, **{"access-control-request-private-network": "true"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-private-network"] == "true"


def test_a_page_of_another_origin_is_not_let_in(service: EmbeddingService) -> None:
    answers = [
        preflight(service, OTHER),
        send(service, "GET", "/info", headers={"origin": OTHER, "authorization": KEY}),
    ]
    assert [answer.status_code for answer in answers] == [400, 200]
    assert not any("access-control-allow-origin" in answer.headers for answer in answers)


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("GET", "/v1/models", KEY, 200),
        ("GET", "/v1/models", "", 401),
        ("POST", "/v1/embeddings", KEY, 400),
        ("GET", "/nothing", KEY, 404),
        ("GET", "/embed", KEY, 405),
        ("GET", "/ready", "", 503),
        ("GET", "/info", KEY, 500),
    ],
)
def test_a_page_may_read_every_answer(
    service: EmbeddingService,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    key: str,
    status: int,
) -> None:
    if status == 500:  # a fault of the server's own
        monkeypatch.setattr(service, "scheduler", None)
    answer = send(service, method, path, headers={"origin": PAGE, "authorization": key})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-expose-headers"] == "*"


@pytest.mark.parametrize("service", [("*",)], indirect=True)
def test_every_page_is_let_in_where_that_is_said(service: EmbeddingService) -> None:
    for origin in (PAGE, OTHER, "null"):
        assert preflight(service, origin).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("service", [()], indirect=True)
def test_no_page_is_let_in_unless_it_is_said(service: EmbeddingService) -> None:
    answer = preflight(service, PAGE)
    assert answer.status_code == 405
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    ("origin", "remedy"),
    [
        ("http://localhost:3000/", "name http://localhost:3000"),
        ("https://Example.org/app?x", "name https://example.org"),
        ("localhost:3000", "name one, or * for all"),
        ("https://", "name one, or * for all"),
        ("", "name one, or * for all"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin: str, remedy: str) -> None:
    with pytest.raises(InputError) as refused:
        ServerConfig("small", cors_allow_origins=(PAGE, "null", "*", origin))
    assert str(refused.value).startswith("expected `cors_allow_origins` as browsers send them")
    assert str(refused.value).endswith(f"found {origin!r}; {remedy}")


@pytest.mark.slow
def test_origins_are_those_of_the_command_line(served_artifact: Artifact) -> None:
    options = [part for page in (PAGE, OTHER) for part in ("--cors-allow-origin", page)]
    with running(served_artifact.folder, *options) as server:
        for origin, status in ((PAGE, 200), (OTHER, 200), ("https://evil.example", 400)):
            headers = {"origin": origin, "access-control-request-method": "POST"}
            answer = server.client.options("/embed", headers=headers)
            assert answer.status_code == status
