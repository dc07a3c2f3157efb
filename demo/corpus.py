"""Text pairs that every machine has: docstrings of the standard library and of our dependencies.

A docstring's first paragraph is the query, the rest of it the document it should find. Sources are
parsed, never imported.
"""

import ast
import hashlib
import importlib.util
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Self

from anna_train.check.words import words

# Most pairs kept: some 20 s of parsing, and nearly all that the demonstration trains on.
MAX_PAIRS = 12_000
# In the order they are read, after the standard library; by import name and distribution name.
PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "pandas": "pandas",
    "networkx": "networkx",
    "torch": "torch",
}
QUERY_CHARACTERS = range(16, 301)
DOCUMENT_CHARACTERS = range(48, 4001)
# One pair in this many is held out.
HELDOUT_SHARE = 16

_SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "lib2to3", "__pycache__"}
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and the one document that answers it; whitespace is single spaces."""

    query: str
    document: str

    @property
    def digest(self) -> str:
        """Hash of the content, 32 hex digits."""
        content = f"{self.query}\0{self.document}".encode()
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    @property
    def heldout(self) -> bool:
        """Whether the pair is kept from training; depends on its content alone."""
        return int(self.digest[:8], 16) % HELDOUT_SHARE == 0


@dataclass(frozen=True, slots=True)
class Corpus:
    """Pairs for training and pairs kept from it, in a fixed order."""

    train: tuple[Pair, ...]
    heldout: tuple[Pair, ...]

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.train + self.heldout)

    @classmethod
    def split(cls, pairs: Sequence[Pair]) -> Self:
        """Split by content hash, so that a pair stays on its side whatever else is there."""
        return cls(
            train=tuple(pair for pair in pairs if not pair.heldout),
            heldout=tuple(pair for pair in pairs if pair.heldout),
        )


def read_corpus(max_pairs: int = MAX_PAIRS) -> Corpus:
    """Read up to max_pairs pairs from this machine's Python, in a fixed order."""
    return Corpus.split(collect_pairs(source_files(source_folders()), max_pairs))


def sources_version() -> str:
    """Name the versions of everything that is read; equal text means an equal corpus."""
    installed = [f"python {python_version()}"]
    for module, distribution in PACKAGES.items():
        if _folder_of(module) is not None:
            installed.append(f"{distribution} {metadata.version(distribution)}")
    return ", ".join(installed)


def source_folders() -> list[Path]:
    """Return the standard library's folder and those of the packages that are installed."""
    folders = [Path(sysconfig.get_paths()["stdlib"])]
    folders_of_packages = (_folder_of(module) for module in PACKAGES)
    return folders + [folder for folder in folders_of_packages if folder is not None]


def source_files(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the folders' Python files, without tests, in an order that every machine shares."""
    for folder in folders:
        files = (path.relative_to(folder) for path in folder.rglob("*.py"))
        paths = (path for path in files if not _SKIPPED_FOLDERS & set(path.parts))
        yield from (folder / path for path in sorted(paths, key=Path.as_posix))


def collect_pairs(files: Iterator[Path], max_pairs: int) -> list[Pair]:
    """Take pairs from files until there are max_pairs; no text's words come twice."""
    pairs: list[Pair] = []
    collected: set[str] = set()
    for path in files:
        for pair in pairs_of_source(path.read_bytes()):
            texts = {" ".join(words(text)) for text in (pair.query, pair.document)}
            if texts & collected:
                continue
            collected |= texts
            pairs.append(pair)
            if len(pairs) == max_pairs:
                return pairs
    return pairs


def pairs_of_source(source: bytes) -> Iterator[Pair]:
    """Yield the pairs of one file's docstrings; none where it is not valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in _documented(tree):
        if docstring := ast.get_docstring(node):
            head, _, body = docstring.partition("\n\n")
            pair = Pair(" ".join(head.split()), " ".join(body.split()))
            if len(pair.query) in QUERY_CHARACTERS and len(pair.document) in DOCUMENT_CHARACTERS:
                yield pair


def _documented(node: _Documented) -> Iterator[_Documented]:
    """Yield a node and the classes and functions directly in it: a third of ast.walk's time."""
    yield node
    for child in node.body:
        if isinstance(child, _Documented):
            yield from _documented(child)


def _folder_of(module: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None
