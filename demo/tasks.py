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
    used = {text for pair in trained for text in (pair.query, pair.document)}
    docstrings = []
    for folder in source_folders():
        for path in source_files([folder]):
            first = path.relative_to(folder).parts[0].removesuffix(".py")
            for pair in pairs_of_source(path.read_bytes()):
                if len(pair.document) not in DOCUMENT_CHARACTERS:
                    continue
                if pair.query in used or pair.document in used:
                    continue
                used |= {pair.query, pair.document}
                docstrings.append(Docstring(pair, folder.name, f"{folder.name}.{first}"))
    return sorted(docstrings, key=lambda docstring: docstring.pair.digest)


def _retrieval(docstrings: Sequence[Docstring], folder: Path) -> dict[str, Any]:
    documents = docstrings[:DOCUMENTS]
    queries = [
        (f"q{index}", docstring.pair.query) for index, docstring in enumerate(documents[:QUERIES])
    ]
    corpus = [
        (f"d{index}", "", docstring.pair.document) for index, docstring in enumerate(documents)
    ]
    answers = [(f"q{index}", f"d{index}", 1) for index in range(len(queries))]
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
    by_module = _by(docstrings, lambda docstring: docstring.module)
    names = sorted(by_module, key=lambda name: (-len(by_module[name]), name))[:CLASSES]
    rows: dict[str, list[tuple[str, int, str]]] = {"train": [], "test": []}
    for label, name in enumerate(names):
        for index, docstring in enumerate(by_module[name][: TRAIN_TEXTS + TEST_TEXTS]):
            split = "train" if index < TRAIN_TEXTS else "test"
            rows[split].append((docstring.pair.document, label, name))
    splits = {
        split: _table(("text", "label", "label_text"), split_rows)
        for split, split_rows in rows.items()
    }
    revision = write_data(folder, {"default": splits})
    return _entry("Banking77Classification", revision, "the module of a docstring", folder.name)


def _clustering(docstrings: Sequence[Docstring], folder: Path) -> dict[str, Any]:
    by_package = _by(docstrings, lambda docstring: docstring.package)
    each = 2 * CLUSTERED // len(by_package)
    rows = [
        (docstring.pair.query, name)
        for name, members in by_package.items()
        for docstring in members[:each]
    ]
    random.Random(0).shuffle(rows)
    rows = rows[:CLUSTERED]
    revision = write_data(folder, {"default": {"test": _table(("sentences", "labels"), rows)}})
    entry = _entry("GeoreviewClusteringP2P", revision, "the package of a docstring", folder.name)
    entry["metadata"] |= {"eval_langs": ["eng-Latn"], "domains": ["Programming", "Written"]}
    return entry


def _pairs(docstrings: Sequence[Docstring], folder: Path) -> dict[str, Any]:
    chosen = docstrings[-PAIRS:]
    by_module = _by(chosen, lambda docstring: docstring.module)
    rows = []
    for index, docstring in enumerate(chosen):
        siblings = by_module[docstring.module]
        other = siblings[(siblings.index(docstring) + 1) % len(siblings)]
        same = index % 2 == 0 or other is docstring
        rows.append((docstring.pair.query, (docstring if same else other).pair.document, int(same)))
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
    groups: dict[str, list[Docstring]] = {}
    for docstring in docstrings:
        groups.setdefault(key(docstring), []).append(docstring)
    return groups


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
