"""The family that the page on extending adds is exported, and gives the library's own vectors."""

from pathlib import Path
from typing import Any

import pytest

from anna_export import open_encoder
from anna_export.console.output import stage
from anna_export.cosine import cosines
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.spec import FAMILIES, Family, read_spec
from tests.docs.pages import ROOT, blocks_of
from tests.support import families
from tests.support.st_folders import open_st, save_st

PAGE = ROOT / "docs" / "contributing" / "extend.md"
# a window in one layer of three, and shorter than the texts
NUMBERS: dict[str, Any] = {
    "sliding_window": 9,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}
TEXTS = ["What is the capital of France?", "The card has not arrived. " * 4]


@pytest.fixture
def ministral(monkeypatch: pytest.MonkeyPatch) -> Family:
    """The value that the page's block makes, in the table."""
    (block,) = [each for each in blocks_of(PAGE.read_text()) if "MinistralModel" in each.code]
    names: dict[str, Any] = {}
    exec(compile(block.code, str(PAGE), "exec"), names)
    family = names["MINISTRAL"]
    monkeypatch.setitem(FAMILIES, family.model_type, family)
    monkeypatch.setitem(families.CONFIGS, family.model_type, NUMBERS)
    return family


@pytest.mark.parametrize("mask", [{}, {"is_causal": False}], ids=["causal", "both ways"])
def test_the_pages_family_gives_the_vectors_of_the_librarys_encode(
    ministral: Family, mask: dict[str, Any], tmp_path: Path
) -> None:
    base = families.write_model(tmp_path / "base", ministral.model_type, **mask)
    model = save_st(base, tmp_path / "model", "mean")
    expected = open_st(model).encode(TEXTS)
    recipe = Recipe(model, None, tmp_path / "out", max_tokens=64, verify=False)
    vectors = open_encoder(export(recipe, stage).artifact.folder).encode(TEXTS, "")
    assert cosines(vectors, expected).min() >= 0.999999
    assert read_spec(model).full_attention_layers == (0, 2)
