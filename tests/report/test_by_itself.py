"""What the card says of the graph by itself is what other libraries find."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tokenizers

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.graph.names import CANONICAL
from anna_export.report.by_itself import graph_section
from anna_export.report.card import model_card
from anna_export.verify.parity_file import current_parity
from tests.support.folders import edit_json
from tests.support.types import MakeArtifact

SCHEMA_2 = Path(__file__).parents[1] / "data" / "schema2"


@pytest.fixture(scope="module")
def card(artifact: Artifact) -> str:
    return model_card(artifact, current_parity(artifact))


@pytest.fixture(scope="module")
def session(artifact: Artifact) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        artifact.graph(CANONICAL), providers=["CPUExecutionProvider"]
    )


def test_inputs_and_outputs_are_those_that_onnxruntime_finds(
    card: str, session: onnxruntime.InferenceSession
) -> None:
    listed = re.findall(
        r"^\| (input|output) `(\w+)` \| (\w+) \| \((.*?)\) \| ?(.*?) ?\|$", card, re.M
    )
    types = {"tensor(int64)": "int64", "tensor(float)": "float32"}
    optional = {value.name for value in session.get_overridable_initializers()}
    expected = {
        (role, value.name, types[value.type], ", ".join(map(str, value.shape)))
        for role, values in (
            ("input", [*session.get_inputs(), *session.get_overridable_initializers()]),
            ("output", session.get_outputs()),
        )
        for value in values
    }
    assert {fields[:4] for fields in listed} == expected
    assert {name for _, name, _, _, note in listed if note == "may be left out"} == optional


def test_examples_ids_and_values_are_what_the_graph_gives(
    card: str, artifact: Artifact, session: onnxruntime.InferenceSession
) -> None:
    match = re.search(
        r"example: '(.*?)' has the ids (\[.*?\]), and its vector begins ([^(]*)", card
    )
    assert match is not None
    ids = json.loads(match[2])
    tokenizer = tokenizers.Tokenizer.from_file(str(artifact.folder / "tokenizer.json"))
    assert tokenizer.encode(match[1]).ids == ids
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    (vectors,) = session.run(None, feeds)
    values = np.array([float(value) for value in match[3].split(",")])
    # printed to five places
    np.testing.assert_allclose(vectors[0, : len(values)], values, rtol=0, atol=1e-5)


def test_framing_and_padding_are_told(card: str) -> None:
    assert "ids: `<s>` (1), prompt and text, `</s>` (2); at most 4096 in all" in card
    assert "padding: `</s>` (2) on either side" in card
    assert "last-token pooling, unit length" in card
    assert "`tokenizer.json` gives these ids by itself" in card


def test_artifact_without_a_proof_has_no_values(base: Path, make_artifact: MakeArtifact) -> None:
    section = graph_section(make_artifact(base), [])
    assert "has the ids [1, 264, 2]\n" in section and "begins" not in section


def test_artifact_of_before_pads_on_the_right_alone() -> None:
    artifact = open_artifact(SCHEMA_2 / "artifact-fp32")
    assert "padding: `</s>` (2) on the right alone" in graph_section(artifact, [])


def test_tokenizer_that_does_not_frame_is_told(artifact: Artifact, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "model.onnx"):
        shutil.copyfile(artifact.folder / name, tmp_path / name)
    edit_json(tmp_path / "tokenizer.json", lambda content: content.update(post_processor=None))
    section = graph_section(Artifact(tmp_path, artifact.manifest), [])
    assert "does not give these ids by itself: put the ends around them" in section
