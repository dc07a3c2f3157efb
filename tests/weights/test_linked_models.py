"""Models and adapters whose files are links, as in the hub's cache."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anna_export import open_encoder
from anna_export.console.output import stage
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.reference.load import open_reference
from anna_export.weights.merge import write_merged
from anna_export.weights.modules import read_modules
from tests.support.linked import LAYOUTS, Lay, contents
from tests.support.st_folders import dense, open_st, save_st

TEXTS = ["a text", "another of more words"]


@pytest.fixture(params=LAYOUTS)
def lay(request: pytest.FixtureRequest, tmp_path: Path) -> Lay:
    """Lays a folder out below a root that is made for it."""

    def below(source: Path, root: Path) -> Path:
        root.mkdir()
        return LAYOUTS[request.param](source, root)

    return below


@pytest.fixture
def linked(lay: Lay, base: Path, adapter: Path, tmp_path: Path) -> tuple[Path, Path]:
    folders = lay(base, tmp_path / "base"), lay(adapter, tmp_path / "adapter")
    assert all(path.is_symlink() for folder in folders for path in folder.glob("*.safetensors"))
    return folders


def test_linked_model_and_adapter_merge_to_what_their_files_do(
    linked: tuple[Path, Path], base: Path, adapter: Path, tmp_path: Path
) -> None:
    write_merged(*linked, tmp_path / "linked")
    write_merged(base, adapter, tmp_path / "plain")
    merged = contents(tmp_path / "linked")
    assert merged == contents(tmp_path / "plain") and "model.safetensors" in merged


def test_linked_model_and_adapter_export_to_what_transformers_and_peft_compute(
    linked: tuple[Path, Path], base: Path, adapter: Path, tmp_path: Path
) -> None:
    artifact = export(Recipe(*linked, tmp_path / "out", max_tokens=64), stage).artifact
    assert not any(path.is_symlink() for path in artifact.folder.rglob("*"))
    expected = open_reference(base, adapter).encode(TEXTS, "")
    vectors = open_encoder(artifact.folder).encode(TEXTS, "")
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    # what the proof compared with: base and adapter behind their links
    np.testing.assert_array_equal(open_reference(*linked).encode(TEXTS, ""), expected)


def test_linked_modules_are_those_that_sentence_transformers_runs(
    lay: Lay, base: Path, tmp_path: Path
) -> None:
    linked = lay(save_st(base, tmp_path / "st"), tmp_path / "linked")
    artifact = export(Recipe(linked, None, tmp_path / "out", max_tokens=64), stage).artifact
    vectors = open_encoder(artifact.folder).encode(TEXTS)
    np.testing.assert_allclose(vectors, open_st(linked).encode(TEXTS), rtol=0, atol=1e-5)


def test_linked_modules_are_read_as_their_files(lay: Lay, base: Path, tmp_path: Path) -> None:
    model = save_st(base, tmp_path / "st", "mean", layers=[dense(40, 24)])
    linked, plain = read_modules(lay(model, tmp_path / "linked")), read_modules(model)
    assert linked.head == plain.head and linked.head.dense and linked.parts == plain.parts
    for name, weight in plain.weights.items():
        assert torch.equal(linked.weights[name].read(), weight.read())
