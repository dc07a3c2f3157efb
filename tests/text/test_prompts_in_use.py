"""prompts.json from export to vectors: the same prompts wherever texts are embedded."""

import json
from pathlib import Path

import numpy as np
import pytest

from anna_export import open_encoder, sentence_transformer
from anna_export.artifact.folder import open_artifact
from anna_export.cli import run
from anna_export.text.prompts import Prompt
from tests.support.types import Refused

TEXTS = ["a text", "another one,\nlonger", ""]
FILE = {
    "default": "sts",
    "tasks": {
        "sts": {
            "format": "e5",
            "instruction": "Find like.",
            "examples": [{"query": "a dog", "response": "a hound"}],
            "response_suffix": True,
            "documents": "sts",
        },
        "passage": {"text": "passage: "},
    },
}
FRONT = "Instruct: Find like.\nQuery: a dog\nResponse: a hound\n\nInstruct: Find like.\nQuery: "
BACK = "\nResponse:"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps(FILE))
    return path


@pytest.fixture(scope="module")
def artifact(base: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prompted") / "out"
    assert run(["--model", str(base), "--out", str(out), "--prompts", str(prompts)]) == 0
    return out


def test_artifact_holds_the_files_prompts_and_was_proved_with_them(artifact: Path) -> None:
    manifest = open_artifact(artifact).manifest
    assert manifest.prompts.by_name == {"sts": Prompt(FRONT, BACK), "passage": Prompt("passage: ")}
    assert manifest.prompts.default == "sts" and manifest.prompts.documents == {"sts": "sts"}
    assert json.loads((artifact / "parity.json").read_text())["vectors"]["prompts"] == [
        "passage",
        "sts",
    ]
    assert repr(BACK) in (artifact / "README.md").read_text()


def test_prompt_stands_around_the_text(artifact: Path) -> None:
    encoder = open_encoder(artifact)
    texts = [f"{FRONT}{text}{BACK}" for text in TEXTS]
    for vectors in (encoder.encode(TEXTS, "sts"), encoder.encode(TEXTS)):
        # its prefix was computed by another library than the text
        np.testing.assert_allclose(vectors, encoder.encode(texts, ""), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["sts", "passage"])
def test_sentence_transformers_gives_the_same_vectors_by_name(artifact: Path, name: str) -> None:
    vectors = sentence_transformer(artifact).encode(TEXTS, prompt_name=name)
    expected = open_encoder(artifact).encode(TEXTS, name)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_embed_takes_a_prompt_by_name(artifact: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "texts.txt", tmp_path / "vectors.npy"
    source.write_text("a text\nanother\n")
    args = ["embed", str(artifact), str(source), "--out", str(out), "--prompt", "passage"]
    assert run(args) == 0
    expected = open_encoder(artifact).encode(["a text", "another"], "passage")
    np.testing.assert_allclose(np.load(out), expected, atol=1e-6)


def test_file_of_prompts_stands_in_for_the_models_own(
    base: Path, prompts: Path, tmp_path: Path
) -> None:
    args = ["--model", base, "--out", tmp_path / "out", "--no-verify", "--prompts", prompts]
    assert run([str(arg) for arg in args]) == 0
    assert set(open_artifact(tmp_path / "out").manifest.prompts.by_name) == {"sts", "passage"}


def test_missing_or_wrong_file_of_prompts_is_refused_before_any_work(
    base: Path, refused: Refused, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = ["--model", base, "--out", out, "--prompts", tmp_path / "prompts.json"]
    assert "expected a file of prompts" in refused(*args)
    (tmp_path / "prompts.json").write_text('{"tasks": {"sts": {"format": "e5"}}}')
    assert "tasks.sts.instruction" in refused(*args)
    assert not out.exists() and not list(tmp_path.glob(".out*"))
