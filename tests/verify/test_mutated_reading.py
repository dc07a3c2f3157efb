"""A reading of ours that is wrong, all else right, is caught by the proof: what differs is named.

Each test breaks one thing that only our side reads. The libraries' side stays as it is.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)

from anna_export.console.output import stage
from anna_export.errors import ParityError
from anna_export.export import prepare
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.spec import Head, PoolingMode
from anna_export.text.framing import FramingReading, framing_of
from anna_export.text.prompt_file import find_prompts
from anna_export.text.prompts import Prompts
from anna_export.verify import reading
from anna_export.weights import checkpoint
from anna_export.weights.modules import Modules, read_modules
from tests.support.types import MakeModel

DIM = 40
PROMPTS = {"query": "Find what answers this: ", "document": "A passage: "}


@pytest.fixture(scope="module")
def base(make_model: MakeModel) -> Path:
    return make_model(shared=True, num_hidden_layers=2, seed=11)


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sentence-transformers with a Dense module of as many outputs as inputs."""
    torch.manual_seed(2)
    modules = [
        Transformer(str(base), processor_kwargs={"model_max_length": 48}),
        Pooling(DIM, "lasttoken"),
        Dense(DIM, DIM, activation_function=torch.nn.Tanh()),
        Normalize(),
    ]
    folder = tmp_path_factory.mktemp("model") / "st"
    SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu").save_pretrained(str(folder))
    return folder


def of_framing(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[FramingReading], FramingReading]
) -> None:
    def changed(*args: Any, **options: Any) -> FramingReading:
        return change(framing_of(*args, **options))

    monkeypatch.setattr(prepare, "framing_of", changed)


def of_head(monkeypatch: pytest.MonkeyPatch, change: Callable[[Head], Head]) -> None:
    def changed(*args: Any) -> Modules:
        modules = read_modules(*args)
        head = change(modules.head)
        return replace(modules, head=head, weights=modules.weights if head.dense else {})

    monkeypatch.setattr(checkpoint, "read_modules", changed)


def refused(model: Path, out: Path) -> str:
    with pytest.raises(ParityError) as error:
        export(Recipe(model, None, out), stage)
    assert "\n" not in str(error.value) and not out.exists()
    return str(error.value)


def test_unmutated_it_passes(model: Path, tmp_path: Path) -> None:
    parity = export(Recipe(model, None, tmp_path / "out"), stage).parity
    assert parity is not None and parity.verdict == "pass"
    library = parity.reference_library
    assert library is not None and library.library.startswith("sentence-transformers 6")
    assert library.modules == ["Pooling (lasttoken)", "Dense (40 to 40, tanh)", "Normalize"]
    assert library.decoder.startswith("MistralModel of transformers ")
    assert library.adapter is None and "token ids" in library.compared


def test_a_last_token_without_the_prompt_is_the_last_token_on_both_sides(
    base: Path, tmp_path: Path
) -> None:
    pooling = Pooling(DIM, "lasttoken", include_prompt=False)
    modules = [Transformer(str(base)), pooling, Normalize()]
    model = SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu")
    model.save_pretrained(str(tmp_path / "st"))
    recipe = Recipe(tmp_path / "st", None, tmp_path / "out", max_tokens=48)
    parity = export(recipe, stage).parity
    assert parity is not None and parity.reasons == []


def test_a_dropped_end_token_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_framing(monkeypatch, lambda read: replace(read, framing=replace(read.framing, eos_id=None)))
    message = refused(model, tmp_path / "out")
    assert "its tokenizer puts </s> behind a text, the artifact does not" in message
    assert "(no prompt: '')" in message


def test_a_changed_pooling_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_head(monkeypatch, lambda head: replace(head, pooling=PoolingMode.MEAN))
    message = refused(model, tmp_path / "out")
    assert "the reference's modules are Pooling (lasttoken), Dense" in message
    assert "the artifact's Pooling (mean), Dense" in message


def test_a_skipped_dense_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_head(monkeypatch, lambda head: replace(head, dense=()))
    message = refused(model, tmp_path / "out")
    assert "the artifact's Pooling (lasttoken), Normalize" in message


def test_a_cut_at_the_other_side_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_framing(
        monkeypatch,
        lambda read: replace(read, framing=replace(read.framing, truncation_side="left")),
    )
    message = refused(model, tmp_path / "out")
    assert (
        "the reference's tokenizer truncates a long text at its right end (truncation_side), the "
        "artifact at its left end" in message
    )


def test_swapped_prompts_are_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(*args: Any) -> Prompts:
        read = find_prompts(*args)
        query, document = read.by_name["query"], read.by_name["document"]
        return replace(read, by_name={"query": document, "document": query})

    monkeypatch.setattr(prepare, "find_prompts", swapped)
    message = refused(model, tmp_path / "out")
    assert "the prompt query is 'Find what answers this: ' in the reference" in message


def test_another_token_pooled_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_pooled", lambda spec, length, skipped: [0])
    assert "the reference pools the tokens [6] of 7, the artifact [0] (no prompt)" in refused(
        model, tmp_path / "out"
    )
