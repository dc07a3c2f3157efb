"""Every family, mask and pooling gives the vectors of the library's own `encode`.

The oracle is sentence-transformers over a folder that it wrote itself; none of the product's
reference is used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anna_export import open_encoder
from anna_export.console.output import stage
from anna_export.cosine import cosines
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.quantise import scheme_of
from anna_export.quantise.options import storage
from anna_export.spec import FAMILIES, Precision
from anna_export.verify.texts import ordinary_texts
from tests.support.families import BOTH_WAYS, write_model
from tests.support.shared import SharedFolders
from tests.support.st_folders import dense, open_st, save_st

MAX_TOKENS = 64
TEXTS = [
    "What is the capital of France?",
    "a few",
    "The card has not arrived, and nobody knows where it is. " * 3,  # beyond every window
    "It rains, and the fox is wet; nobody minds. " * 9,  # beyond the longest sequence
]
PROMPTS = {"query": "Find what answers this: ", "document": ""}
MASKS = {"causal": dict[str, dict[str, Any]](), "both ways": BOTH_WAYS}
HEADS: dict[str, dict[str, Any]] = {
    "last": {"pooling": "lasttoken"},
    "mean": {"pooling": "mean"},
    "cls": {"pooling": "cls"},
    "mean without prompt": {"pooling": "mean", "include_prompt": False},
    "mean and Dense, any length": {
        "pooling": "mean",
        "layers": [dense(48, 24, torch.nn.Identity(), bias=False)],
        "normalize": False,
    },
}


@pytest.fixture(scope="session")
def family_model(shared_folders: SharedFolders) -> Callable[..., Path]:
    """Writes the folder of a family, mask and head, once."""

    def make(family: str, mask: str, head: str, **numbers: Any) -> Path:
        def decoder(folder: Path) -> None:
            changes = MASKS[mask].get(family, {}) | numbers
            write_model(folder, family, **changes)

        base = shared_folders.folder("family", decoder, family, mask, sorted(numbers.items()))

        def model(folder: Path) -> None:
            save_st(base, folder, prompts=PROMPTS, **HEADS[head])

        arguments = (family, mask, head, sorted(numbers.items()))
        return shared_folders.folder("family head", model, *arguments)

    return make


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_the_librarys_encode(
    family_model: Callable[..., Path],
    family: str,
    mask: str,
    head: str,
    tmp_path: Path,
) -> None:
    model = family_model(family, mask, head)
    library = open_st(model)
    library.max_seq_length = MAX_TOKENS
    recipe = Recipe(model, None, tmp_path / "out", max_tokens=MAX_TOKENS, verify=False)
    encoder = open_encoder(export(recipe, stage).artifact.folder)
    for prompt in (None, "query"):
        expected = library.encode(TEXTS, prompt_name=prompt)
        vectors = encoder.encode(TEXTS, "" if prompt is None else prompt)
        assert cosines(vectors, expected).min() >= 0.999999
        lengths = np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
        np.testing.assert_allclose(lengths, 1, atol=1e-4)


@pytest.mark.parametrize("precision", [each for each in Precision if each is not Precision.FP32])
@pytest.mark.parametrize(("mask", "head"), [("causal", "last"), ("both ways", "mean")])
@pytest.mark.parametrize("family", FAMILIES)
def test_narrow_precisions_are_within_their_thresholds(
    family_model: Callable[..., Path],
    few_texts: Path,
    family: str,
    mask: str,
    head: str,
    precision: Precision,
    tmp_path: Path,
) -> None:
    # so small a model is the farther off the sharper its attention is
    model = family_model(family, mask, head, initializer_range=0.05)
    quantised = precision in (Precision.FP8, Precision.INT8, Precision.INT4)
    stored = storage(precision, **({"calibration": few_texts} if quantised else {}))
    recipe = Recipe(model, None, tmp_path / "out", stored, max_tokens=MAX_TOKENS, verify=False)
    artifact = export(recipe, stage).artifact
    library = open_st(model)
    library.max_seq_length = MAX_TOKENS
    texts = [*TEXTS, *ordinary_texts(20)]
    similarities = cosines(open_encoder(artifact.folder).encode(texts, ""), library.encode(texts))
    thresholds = scheme_of(artifact.manifest).thresholds
    assert similarities.min() >= (thresholds.min_cosine or 0)
    assert 1 - similarities.mean() <= (thresholds.max_loss or 1)
