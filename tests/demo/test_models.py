"""The demonstration's models, with a few training steps each on a small corpus."""

from importlib import resources
from pathlib import Path

import pytest
import yaml

from anna_export.errors import InputError
from demo import models as demo
from demo.base_recipe import BaseRecipe
from demo.corpus import Corpus

BASE = BaseRecipe(steps=2, batch_pairs=8, train_tokens=16)
SHIPPED = resources.files("anna_train") / "recipes" / "demo" / "recipe.yaml"
RECIPE = yaml.safe_load(SHIPPED.read_text()) | {
    "steps": 2,
    "batch": {"queries": 8, "negatives": 2, "group": 4},
    "limits": {"query": 8, "document": 8, "example_query": 4, "example_response": 4},
}
LORA = yaml.safe_dump(RECIPE)
OTHER = yaml.safe_dump(RECIPE | {"seed": 1})


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(autouse=True)
def small_corpus(monkeypatch: pytest.MonkeyPatch, tiny_corpus: Corpus) -> None:
    monkeypatch.setattr(demo, "read_corpus", lambda: tiny_corpus)


@pytest.mark.slow
def test_models_are_made_once_and_the_adapter_alone_when_only_it_changes(out: Path) -> None:
    first = demo.make_models(out, BASE, LORA)
    times_of = {path: path.stat().st_mtime_ns for path in out.glob("*/*.safetensors")}
    assert {path.parent.name for path in times_of} == {"base", "adapter"}

    assert demo.make_models(out, BASE, LORA) == first
    assert {path: path.stat().st_mtime_ns for path in times_of} == times_of

    demo.make_models(out, BASE, OTHER)
    changed = [path.parent.name for path in times_of if path.stat().st_mtime_ns != times_of[path]]
    assert changed == ["adapter"]


@pytest.mark.slow
def test_other_libraries_make_everything_anew(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.make_models(out, BASE, LORA)
    monkeypatch.setattr(demo, "_versions", lambda: {"torch": "0"})
    remade = set(demo.make_models(out, BASE, LORA).seconds)
    assert remade == {"base", "check.json", "mined.jsonl", "adapter", "figures.json"}


@pytest.mark.slow
def test_figures_are_of_the_heldout_pairs(out: Path, tiny_corpus: Corpus) -> None:
    figures = demo.make_models(out, BASE, LORA).figures
    assert figures.evaluated_pairs == len(tiny_corpus.heldout)
    assert figures.train_pairs == len(tiny_corpus.train)
    assert 0.5 < figures.query_cosine < 1
    for retrieval in (figures.base, figures.base_prompted, figures.tuned):
        assert 0 <= retrieval.recall_at_1 <= retrieval.ndcg_at_10 <= 1


def test_heldout_texts_are_heldout_in_a_fixed_order(out: Path, tiny_corpus: Corpus) -> None:
    texts = demo.heldout_texts(out, 6)
    assert texts == demo.heldout_texts(out, 8)[:6]
    trained = {text for pair in tiny_corpus.train for text in (pair.query, pair.document)}
    assert len(set(texts) - trained) == 6


@pytest.mark.parametrize("count", [0, 10_000])
def test_more_texts_than_were_held_out_are_refused(out: Path, count: int) -> None:
    with pytest.raises(InputError, match=f"found {count}"):
        demo.heldout_texts(out, count)
