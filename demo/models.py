"""The demonstration's models: a base and its LoRA adapter, made once and reused while valid.

In the output folder: `base` and `adapter`, ordinary Hugging Face and peft folders; beside them
`corpus.json` (the texts), the training rows as they are checked, mined and scored, the recipe that
`anna-train tune` takes, and `figures.json` (how well the models do).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata, resources
from pathlib import Path
from typing import Final

from anna_train.data.rows import Row, write_rows
from anna_train.run.retrieval import Retrieval

from anna_export.errors import InputError
from anna_export.progress import Stage, no_stage
from demo.base_recipe import BaseRecipe
from demo.corpus import Corpus, Pair, read_corpus, sources_version
from demo.figures import Figures, Scores
from demo.output_cache import OutputCache, content_hash

# Rows that are mined, scored and trained on: what two minutes of one core allow.
MAX_ROWS: Final = 4000
# Another version of one of these may train other weights, write other files or embed otherwise.
_LIBRARIES: Final = (
    "accelerate",
    "bm25s",
    "mistral-common",
    "peft",
    "scikit-learn",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
)
# What the adapter's weights and folder come from.
_TUNING: Final = (
    "train:data/training_data",
    "train:model/*",
    "train:plan/assemble",
    "train:plan/batch_plan",
    "train:recipe",
    "train:run/adapter_card",
    "train:run/adapter_folder",
    "train:run/evaluation",
    "train:run/gradient",
    "train:run/prepare",
    "train:run/step",
    "train:run/tune",
)


@dataclass(frozen=True, slots=True)
class DemoModels:
    """Where the models are, their figures, and the seconds of each file or folder made anew."""

    base: Path
    adapter: Path
    figures: Figures
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)


def make_models(
    out: Path,
    base_recipe: BaseRecipe | None = None,
    recipe: str | None = None,
    *,
    stage: Stage = no_stage,
    task_data: Path | None = None,
) -> DemoModels:
    """Make `out/base` and `out/adapter`, or reuse them; about five minutes, then seconds.

    Args:
        out: The folder they are kept in.
        base_recipe: How the base is trained; the default's where not given.
        recipe: How the adapter is tuned, as YAML; the one that ships where not given.
        stage: Shows long work.
        task_data: A folder of MTEB test data to evaluate on too; None: docstrings alone.

    Raises:
        InputError: If the tokenizer is not exact, the rows have errors, or a LoRA pair is not
            trained.
    """
    base_recipe, cache = base_recipe or BaseRecipe(), OutputCache(out)
    corpus = _load_corpus(cache)
    corpus_hash = content_hash(out / "corpus.json")
    base = cache.make(
        "base",
        {
            "recipe": asdict(base_recipe),
            "corpus": corpus_hash,
            "sources": _sources(
                "base_model", "base_recipe", "repeatable", "tokenizer", "train:model/forward"
            ),
            "versions": _versions(),
        },
        lambda folder: _training_step("make_base")(corpus, folder, base_recipe),
    )
    adapter = _make_adapter(cache, corpus, base, recipe, stage)
    figures = cache.make(
        "figures.json",
        {
            "base": content_hash(base),
            "adapter": content_hash(adapter),
            "task_data": None if task_data is None else content_hash(task_data / "manifest.json"),
            "sources": _sources(
                "measure_models", "repeatable", "task_scores", "train:run/retrieval"
            ),
            "versions": _versions(),
        },
        partial(_make_figures, corpus, base, adapter, task_data),
    )
    return DemoModels(base, adapter, _read_figures(figures), cache.seconds)


def _make_adapter(
    cache: OutputCache, corpus: Corpus, base: Path, recipe: str | None, stage: Stage
) -> Path:
    """Make the training rows and the shipped recipe's files, and tune the adapter on them."""
    out, scored = cache.folder, _make_rows(cache, corpus, base, stage)
    for name, text in _shipped().items():
        if name == "recipe.yaml" and recipe is not None:
            text = recipe
        (out / name).write_text(text, encoding="utf-8")
    return cache.make(
        "adapter",
        {
            "recipe": (out / "recipe.yaml").read_text(encoding="utf-8"),
            "base": content_hash(base),
            "rows": content_hash(scored),
            "sources": _sources(*_TUNING),
            "versions": _versions(),
        },
        lambda folder: _training_step("make_adapter")(out / "recipe.yaml", folder, stage),
    )


def _make_rows(cache: OutputCache, corpus: Corpus, base: Path, stage: Stage) -> Path:
    """Make the training rows: written, checked, mined and scored."""
    key = {"corpus": content_hash(cache.folder / "corpus.json"), "rows": MAX_ROWS}
    rows = cache.make("rows.jsonl", key, partial(_write_pairs, corpus.train))
    heldout = cache.make("heldout.jsonl", key, partial(_write_pairs, corpus.heldout))
    made_from = {"rows": content_hash(rows), "versions": _versions()}
    cache.make(
        "check.json",
        {**made_from, "heldout": content_hash(heldout), "sources": _sources("train:check/*")},
        lambda path: _training_step("check_rows")(rows, heldout, base, path, stage),
    )
    mined = cache.make(
        "mined.jsonl",
        {**made_from, "sources": _sources("train:mining/*")},
        lambda path: _training_step("mine_rows")(rows, path, stage),
    )
    return cache.make(
        "scored.jsonl",
        {"rows": content_hash(mined), "sources": _sources("train:mining/*")},
        lambda path: _training_step("score_rows")(mined, path, stage),
    )


def _write_pairs(pairs: tuple[Pair, ...], path: Path) -> None:
    """Write pairs as rows without negatives, in an order that mixes their sources."""
    chosen = sorted(pairs, key=lambda pair: pair.digest)[:MAX_ROWS]
    write_rows(path, (Row(pair.query, (pair.document,)) for pair in chosen))


def _load_corpus(cache: OutputCache) -> Corpus:
    """Read this machine's docstring pairs, or reuse those kept in corpus.json."""
    path = cache.make(
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
    pairs = sorted(_load_corpus(OutputCache(out)).heldout, key=lambda pair: pair.digest)
    texts = [text for pair in pairs for text in (pair.query, pair.document)]
    if not 0 < count <= len(texts):
        raise InputError(
            f"expected 1 to {len(texts)} held-out texts to be asked for, found {count}"
        )
    return texts[:count]


def training_pairs(out: Path) -> tuple[Pair, ...]:
    """Return what base and adapter were trained on; `out` is as for heldout_texts."""
    return _load_corpus(OutputCache(out)).train


def _training_step(name: str) -> Callable[..., None]:
    """Return what makes something; its imports take seconds, which a run that reuses all saves."""
    from demo import training_steps

    return getattr(training_steps, name)


def _make_figures(
    corpus: Corpus, base: Path, adapter: Path, task_data: Path | None, path: Path
) -> None:
    from demo.measure_models import measure

    _write_json(path, asdict(measure(corpus, base, adapter, task_data)))


def _read_figures(path: Path) -> Figures:
    values = json.loads(path.read_text(encoding="utf-8"))
    for name in ("base", "base_prompted", "tuned"):
        values[name] = Retrieval(**values[name])
    values["tasks"] = {name: Scores(**scores) for name, scores in values["tasks"].items()}
    return Figures(**values)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def _sources(*modules: str) -> dict[str, str]:
    """Return sources of demo, and of anna_train behind "train:"; `folder/*` is all of a folder."""
    roots = {"": Path(__file__).parent, "train": Path(str(resources.files("anna_train")))}
    sources = {}
    for module in modules:
        root, _, name = module.rpartition(":")
        paths = sorted(roots[root].glob(f"{name}.py"))
        assert paths, module  # a module that moved must not leave the key
        for path in paths:
            sources[f"{root}/{path.relative_to(roots[root])}"] = path.read_text(encoding="utf-8")
    return sources


def _shipped() -> dict[str, str]:
    """Return the files of the demonstration's recipe."""
    folder = resources.files("anna_train") / "recipes" / "demo"
    return {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _LIBRARIES}
