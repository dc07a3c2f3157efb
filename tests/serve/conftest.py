"""One artifact with prompts, and one server over it, for all tests."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from anna_export.artifact.folder import Artifact
from anna_export.verify.texts import long_text
from tests.serve.running import STUB, Running, Stub, running
from tests.support.types import MakeArtifact

for library in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(library, reason="needs anna-export[serve]")

PROMPTS = {
    "default": "query",
    "tasks": {
        "query": {"text": f"{long_text(20)}: ", "documents": "passage"},
        "passage": {"text": "passage: "},
    },
}


@pytest.fixture(scope="session")
def served_artifact(
    base: Path, make_artifact: MakeArtifact, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps(PROMPTS))
    return make_artifact(base, max_tokens=256, prompts=path)


@pytest.fixture(scope="session")
def server(served_artifact: Artifact) -> Iterator[Running]:
    name = ("--served-model-name", "small")
    with running(served_artifact.folder, *name, "--max-queue-seconds", "1000") as server:
        yield server.wait_until_ready()


@pytest.fixture
def stub(served_artifact: Artifact) -> Iterator[Stub]:
    """Starts servers whose encoder is a stub; options are those of stub.py."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(**options: float) -> Running:
            arguments = [
                part
                for name, value in options.items()
                for part in (f"--{name.replace('_', '-')}", str(value))
            ]
            server = stack.enter_context(running(served_artifact.folder, *arguments, program=STUB))
            return server.wait_until_ready()

        yield start
