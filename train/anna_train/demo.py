"""The demonstration's models: a base and its LoRA adapter, made once and reused while valid.

In the output folder: `base` and `adapter`, ordinary Hugging Face and peft folders, beside them
`corpus.json` (the texts) and `figures.json` (how well the models do).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata, resources
from pathlib import Path

from anna_export.errors import InputError
from anna_train.corpus import Corpus, Pair, read_corpus, sources_version
from anna_train.evaluate import Figures, Retrieval
from anna_train.kept import Kept, content_hash
from anna_train.recipes import BaseRecipe, LoraRecipe

# Another version of one of these may train other weights, write other files or embed otherwise.
_LIBRARIES = (
    "accelerate",
    "mistral-common",
    "peft",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
)


@dataclass(frozen=True, slots=True)
class DemoModels:
    """Where the models are, their figures, and the seconds of each file or folder made anew."""

    base: Path
    adapter: Path
    figures: Figures
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)


def make_models(
    out: Path, base_recipe: BaseRecipe | None = None, lora_recipe: LoraRecipe | None = None
) -> DemoModels:
    """Make `out/base` and `out/adapter`, or reuse them; about two minutes, then seconds.

    Args:
        out: The folder they are kept in.
        base_recipe: How the base is trained; the default's where not given.
        lora_recipe: How the adapter is tuned; the default's where not given.

    Raises:
        InputError: If the tokenizer is not exact, or a LoRA pair was not trained.
    """
    base_recipe, lora_recipe = base_recipe or BaseRecipe(), lora_recipe or LoraRecipe()
    kept = Kept(out)
    corpus = _load_corpus(kept)
    base = kept.make(
        "base",
        {
            "recipe": asdict(base_recipe),
            "corpus": content_hash(out / "corpus.json"),
            "sources": _sources("base_model", "recipes", "repeatable", "tokenizer"),
            "versions": _versions(),
        },
        lambda folder: _make_base(corpus, folder, base_recipe),
    )
    adapter = kept.make(
        "adapter",
        {
            "recipe": asdict(lora_recipe),
            "base": content_hash(base),
            "corpus": content_hash(out / "corpus.json"),
            "sources": _sources("lora", "repeatable"),
            "versions": _versions(),
        },
        lambda folder: _make_adapter(corpus, base, folder, lora_recipe),
    )
    figures = kept.make(
        "figures.json",
        {
            "base": content_hash(base),
            "adapter": content_hash(adapter),
            "sources": _sources("evaluate", "making", "repeatable"),
            "versions": _versions(),
        },
        lambda path: _make_figures(corpus, base, adapter, path),
    )
    return DemoModels(base, adapter, _read_figures(figures), kept.seconds)


def _load_corpus(kept: Kept) -> Corpus:
    """Read this machine's docstring pairs, or reuse those kept in corpus.json."""
    path = kept.make(
        "corpus.json",
        {"read": sources_version(), "sources": _sources("corpus")},
        lambda path: _write_json(path, [[pair.query, pair.document] for pair in read_corpus()]),
    )
    pairs = json.loads(path.read_text(encoding="utf-8"))
    return Corpus.split([Pair(query, document) for query, document in pairs])


def heldout_texts(out: Path, count: int) -> list[str]:
    """Return texts that no model was trained on, in a fixed order that mixes their lengths.

    Args:
        out: The folder given to make_models; its corpus is reused.
        count: How many; queries and documents in turn.

    Raises:
        InputError: If fewer were held out.
    """
    pairs = sorted(_load_corpus(Kept(out)).heldout, key=lambda pair: pair.digest)
    texts = [text for pair in pairs for text in (pair.query, pair.document)]
    if not 0 < count <= len(texts):
        raise InputError(
            f"expected 1 to {len(texts)} held-out texts to be asked for, found {count}"
        )
    return texts[:count]


# The imports stand here because they take seconds, which a run that reuses everything saves.
def _make_base(corpus: Corpus, folder: Path, recipe: BaseRecipe) -> None:
    from anna_train import making

    making.make_base(corpus, folder, recipe)


def _make_adapter(corpus: Corpus, base: Path, folder: Path, recipe: LoraRecipe) -> None:
    from anna_train import making

    making.make_adapter(corpus, base, folder, recipe)


def _make_figures(corpus: Corpus, base: Path, adapter: Path, path: Path) -> None:
    from anna_train import making

    _write_json(path, asdict(making.measure(corpus, base, adapter)))


def _read_figures(path: Path) -> Figures:
    values = json.loads(path.read_text(encoding="utf-8"))
    for name in ("base", "base_prompted", "tuned"):
        values[name] = Retrieval(**values[name])
    return Figures(**values)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def _sources(*modules: str) -> dict[str, str]:
    package = resources.files("anna_train")
    return {module: (package / f"{module}.py").read_text(encoding="utf-8") for module in modules}


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _LIBRARIES}
