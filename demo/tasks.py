"""MTEB-type tasks of docstrings, which every machine has: retrieval, classification and others.

They are laid out as `anna-export verify --task-data` reads them, and evaluated by mteb's own code.
No docstring is used that a model of the demonstration was trained on.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from demo.corpus import Pair, pairs_of_source, source_files, source_folders

# Texts of about 20 to 80 tokens, so that three encoders embed all in a minute.
DOCUMENT_CHARACTERS: Final = range(60, 301)
QUERIES, DOCUMENTS = 400, 800
CLASSES, TRAIN_TEXTS, TEST_TEXTS = 8, 16, 50  # texts of each class
CLUSTERED, PAIRS = 500, 500


@dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring, and where it is from."""

    pair: Pair
    package: str
    module: str  # the package's part it is in

    @property
    def text(self) -> str:
        """All of it."""
        return f"{self.pair.query} {self.pair.document}"


def write_tasks(docstrings: Sequence[Docstring], folder: Path) -> None:
    """Write a folder of tasks: manifest.json and data/<task>/."""
    folder.mkdir(parents=True)
    manifest = {name: write(docstrings, folder / "data" / name) for name, write in _TASKS.items()}
    text = json.dumps(manifest, indent=2) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def read_docstrings(trained: Sequence[Pair]) -> list[Docstring]:
    """Return docstrings that no model was trained on, in an order that mixes their sources."""
    seen = {text for pair in trained for text in (pair.query, pair.document)}
    found = []
    for folder in source_folders():
        for path in source_files([folder]):
            first = path.relative_to(folder).parts[0].removesuffix(".py")
            for pair in pairs_of_source(path.read_bytes()):
                if len(pair.document) not in DOCUMENT_CHARACTERS:
                    continue
                if pair.query in seen or pair.document in seen:
                    continue
                seen |= {pair.query, pair.document}
                found.append(Docstring(pair, folder.name, f"{folder.name}.{first}"))
    return sorted(found, key=lambda one: one.pair.digest)


def _retrieval(docstrings: Sequence[Docstring], folder: Path) -> dict[str, Any]:
    documents = docstrings[:DOCUMENTS]
    queries = [(f"q{place}", one.pair.query) for place, one in enumerate(documents[:QUERIES])]
    corpus = [(f"d{place}", "", one.pair.document) for place, one in enumerate(documents)]
    answers = [(f"q{place}", f"d{place}", 1) for place in range(len(queries))]
    revision = write_data(
        folder,
        {
            "corpus": {"test": _table(("_id", "title", "text"), corpus)},
            "queries": {"test": _table(("_id", "text"), queries)},
            "default": {"test": _table(("query-id", "corpus-id", "score"), answers)},
        },
    )
    return _entry("CQADupstackGamingRetrieval", revision, "DocstringRetrieval", folder.name)


def _classification(docstrings: Sequence[Docstring], folder: Path) -> dict[str, Any]:
    by_module = _by(docstrings, lambda one: one.module)
    names = sorted(by_module, key=lambda name: (-len(by_module[name]), name))[:CLASSES]
    rows: dict[str, list[tuple[str, int, str]]] = {"train": [], "test": []}
    for label, name in enumerate(names):
        for place, one in enumerate(by_module[name][: TRAIN_TEXTS + TEST_TEXTS]):
            split = "train" if place < TRAIN_TEXTS else "test"
            rows[split].append((one.pair.document, label, name))
    told = {split: _table(("text", "label", "label_text"), found) for split, found in rows.items()}
    revision = write_data(folder, {"default": told})
    return _entry("Banking77Classification", revision, "the module of a docstring", folder.name)


def _clustering(docstrings: Sequence[Docstring], folder: Path) -> dict[str, Any]:
    by_package = _by(docstrings, lambda one: one.package)
    each = 2 * CLUSTERED // len(by_package)
    rows = [(one.pair.query, name) for name, found in by_package.items() for one in found[:each]]
    random.Random(0).shuffle(rows)
    rows = rows[:CLUSTERED]
    revision = write_data(folder, {"default": {"test": _table(("sentences", "labels"), rows)}})
    entry = _entry("GeoreviewClusteringP2P", revision, "the package of a docstring", folder.name)
    entry["metadata"] |= {"eval_langs": ["eng-Latn"], "domains": ["Programming", "Written"]}
    return entry


def _pairs(docstrings: Sequence[Docstring], folder: Path) -> dict[str, Any]:
    chosen = docstrings[-PAIRS:]
    by_module = _by(chosen, lambda one: one.module)
    rows = []
    for place, one in enumerate(chosen):
        siblings = by_module[one.module]
        other = siblings[(siblings.index(one) + 1) % len(siblings)]
        same = place % 2 == 0 or other is one
        rows.append((one.pair.query, (one if same else other).pair.document, int(same)))
    left, right, labels = zip(*rows, strict=True)
    table = pa.table({"sent1": [left], "sent2": [right], "labels": [labels]})
    revision = write_data(folder, {"default": {"test": table}})
    return _entry("TwitterURLCorpus", revision, "two parts of one docstring, or not", folder.name)


_TASKS: Final[Mapping[str, Callable[[Sequence[Docstring], Path], dict[str, Any]]]] = {
    "DocstringRetrieval": _retrieval,
    "DocstringModuleClassification": _classification,
    "DocstringPackageClustering": _clustering,
    "DocstringPairs": _pairs,
}


def _entry(base: str, revision: str, description: str, name: str) -> dict[str, Any]:
    metadata = {"name": name, "description": f"Docstrings of Python packages: {description}."}
    return {"base": base, "revision": revision, "metadata": metadata}


def _by(
    docstrings: Sequence[Docstring], key: Callable[[Docstring], str]
) -> dict[str, list[Docstring]]:
    found: dict[str, list[Docstring]] = {}
    for one in docstrings:
        found.setdefault(key(one), []).append(one)
    return found


def _table(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def write_data(folder: Path, configurations: Mapping[str, Mapping[str, pa.Table]]) -> str:
    """Write a data set of configurations and splits: Parquet files, and the README that lists them.

    Returns:
        Its revision: a hash of the files.
    """
    folder.mkdir(parents=True)
    lines, digest = ["---", "configs:"], hashlib.sha256()
    for name, splits in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, table in splits.items():
            aside = folder / "aside"
            pq.write_table(table, aside)
            content = hashlib.sha256(aside.read_bytes()).hexdigest()
            digest.update(content.encode())
            file = f"{name}-{split}-{content[:12]}.parquet"
            aside.rename(folder / file)
            lines += [f"  - split: {split}", f"    path: {file}"]
    (folder / "README.md").write_text("\n".join([*lines, "---"]) + "\n", encoding="utf-8")
    return f"local-{digest.hexdigest()[:12]}"
