"""Artifacts that the release before this one wrote (manifest schema 2) still open and serve."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import anna_export
from anna_export.cli import run
from tests.serve.running import running

DATA = Path(__file__).parents[1] / "data" / "schema2"
TEXTS = ["a text", "The river runs to the sea.", ""]
PRECISIONS = ("fp32", "int8", "fp8")


@pytest.fixture
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one of them, by precision."""
    return Path(shutil.copytree(DATA / f"artifact-{request.param}", tmp_path / "artifact"))


@pytest.mark.parametrize("prompt", ["sts", ""], ids=["baked prompt", "no prompt"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_old_artifact_gives_the_vectors_it_gave(precision: str, prompt: str) -> None:
    vectors = anna_export.open_encoder(DATA / f"artifact-{precision}").encode(TEXTS, prompt=prompt)
    expected = np.load(DATA / "vectors.npz")[f"{precision}-{prompt or 'none'}"]
    # int8 kernels differ from processor to processor in how they add
    assert (vectors * expected).sum(axis=1).min() > 0.9995


@pytest.mark.parametrize("old", PRECISIONS, indirect=True)
def test_an_old_artifact_holds_under_a_check_of_every_hash(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(old), "--check", "--json"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["artifact_id"]
        == (json.loads((old / "manifest.json").read_text())["artifact_id"])
    )


@pytest.mark.parametrize("old", PRECISIONS, indirect=True)
def test_an_old_artifact_is_reported(old: Path, tmp_path: Path) -> None:
    assert run(["report", str(old), "--out", str(tmp_path / "report.html")]) == 0


@pytest.mark.parametrize("old", ["fp32", "int8"], indirect=True)
def test_an_old_artifact_is_verified_anew(old: Path) -> None:
    verify = ["verify", str(old), "--reference", str(DATA / "base")]
    assert run([*verify, "--adapter", str(DATA / "lora")]) == 0
    assert run(["inspect", str(old), "--check"]) == 0


@pytest.mark.parametrize("old", PRECISIONS, indirect=True)
def test_prompts_of_an_old_artifact_are_edited(old: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"tasks": {"news": {"text": "news: "}}}))
    assert run(["prompts", "add", str(old), str(file)]) == 0
    assert run(["prompts", "remove", str(old), "news"]) == 0
    assert run(["inspect", str(old), "--check"]) == 0


@pytest.mark.parametrize("old", PRECISIONS, indirect=True)
def test_an_old_artifact_is_served(old: Path) -> None:
    expected = anna_export.open_encoder(old).encode(TEXTS, prompt="sts")
    with running(old) as server:
        vectors = server.wait_until_ready().embed(TEXTS, prompt_name="sts")
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
