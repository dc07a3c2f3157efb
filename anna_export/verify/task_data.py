"""Which mteb tasks are run, and where their data is.

A task is described by a value and built anew for every evaluation, as mteb's clustering tasks
keep the state of their random generator.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Final

import datasets
import mteb
import pydantic

from anna_export.console.quiet import quiet_libraries
from anna_export.errors import InputError, MissingError
from anna_export.files.validation import validated

BENCHMARK: Final = "MTEB(eng, v2)"
MANIFEST_FILE: Final = "manifest.json"
# Small tasks of every category of the benchmark: about 60,000 texts, most of them short.
QUICK: Final = (
    "AskUbuntuDupQuestions",
    "ArguAna",
    "BIOSSES",
    "Banking77Classification",
    "StackExchangeClustering.v2",
    "STSBenchmark",
    "SummEvalSummarization.v2",
    "TweetSentimentExtractionClassification",
    "TwitterSemEval2015",
)
_SPLIT: Final = "test"


class _Entry(pydantic.BaseModel):
    """One task of a manifest."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    base: str  # the mteb task it is evaluated as
    revision: str
    metadata: dict[str, Any] = {}  # fields of mteb's TaskMetadata, in place of the base's
    subsets: list[str] | None = None  # of the base's


class _Manifest(pydantic.RootModel[dict[str, _Entry]]):
    pass


@dataclass(frozen=True, slots=True)
class TaskSource:
    """A task that can be built.

    Args:
        name: Its name.
        folder: Its data; None for the Hugging Face cache or hub.
        entry: What the manifest beside its data says; None for a task of mteb's own.
    """

    name: str
    folder: Path | None = None
    entry: _Entry | None = None

    @property
    def base(self) -> str:
        """The mteb task that it is, or is evaluated as."""
        return self.name if self.entry is None else self.entry.base

    def build(self) -> Any:
        """Return a task that was not evaluated yet, for its test split."""
        if self.folder is None or self.entry is None:
            return _official(self.name)
        base = type(mteb.get_task(self.entry.base))
        fields: dict[str, Any] = {
            "dataset": {"path": str(self.folder), "revision": self.entry.revision},
            **self.entry.metadata,
        }
        if self.entry.subsets is not None:
            fields["eval_langs"] = {
                subset: base.metadata.eval_langs[subset] for subset in self.entry.subsets
            }
        # of a class of its own: what one object's metadata says is lost when its data is unloaded
        namespace = {"metadata": base.metadata.model_copy(update=fields), "__module__": __name__}
        return type(base.__name__, (base,), namespace)().filter_eval_splits([_SPLIT])


def sources(tier: str | None, names: Sequence[str], folder: Path | None) -> list[TaskSource]:
    """Return the tasks that were asked for.

    Args:
        tier: "quick" or "full", where no names are given. With a folder, both are all its tasks;
            without, some small ones of every category, or all of MTEB(eng, v2).
        names: Names of tasks.
        folder: Local data: a manifest.json, and a folder data/<task> for each task in it.

    Raises:
        InputError: If there is no such task, or the folder's manifest cannot be used.
        MissingError: If the folder has no manifest, or a task no data.
    """
    if folder is not None:
        return _local(folder, names)
    if names:
        mteb_names = _names()
        for name in names:
            _require_known(name, mteb_names, "mteb")
        return [TaskSource(name) for name in dict.fromkeys(names)]
    return [TaskSource(name) for name in (QUICK if tier == "quick" else _subsets())]


def load(source: TaskSource) -> Any:
    """Build a task and load its data.

    Raises:
        MissingError: If it is not here, and cannot be had.
        InputError: If local data is not of mteb's layout.
    """
    task = source.build()
    with quiet_libraries(), _cached(source.folder):
        try:
            task.load_data()
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if source.folder is not None:
                raise InputError(
                    f"expected data of {source.base} in mteb's layout in {source.folder}, found: "
                    f"{reason}"
                ) from None
            data = task.metadata.dataset
            raise MissingError(
                f"expected the data of {source.name} ({data['path']} at {data['revision'][:7]}) in "
                f"the Hugging Face cache or on its hub, found: {reason}; run once with a network, "
                "or give a folder of data as `task_data`"
            ) from None
    return task


def _local(folder: Path, names: Sequence[str]) -> list[TaskSource]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise MissingError(f"expected a {MANIFEST_FILE} of tasks in {folder}, found none")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"expected JSON in {path}, found: {error}") from None
    entries: Mapping[str, _Entry] = validated(_Manifest, content, path).root
    for name in names:
        _require_known(name, list(entries), str(path))
    return [_bound(folder, name, entries[name]) for name in dict.fromkeys(names or entries)]


def _bound(folder: Path, name: str, entry: _Entry) -> TaskSource:
    _require_known(entry.base, _names(), "mteb", f" as the base of {name}")
    data = folder / "data" / name
    if not any(data.rglob("*.parquet")):
        raise MissingError(
            f"expected Parquet files of {name} in {data}, found none; copy them there, or choose "
            "other tasks"
        )
    subsets = mteb.get_task(entry.base).metadata.hf_subsets
    for subset in entry.subsets or ():
        _require_known(subset, subsets, entry.base, f" as a subset of {name}")
    return TaskSource(name, data, entry)


def _official(name: str) -> Any:
    subsets = _subsets().get(name)
    if subsets is not None:
        return mteb.get_task(name, hf_subsets=subsets, eval_splits=[_SPLIT])
    task = mteb.get_task(name, languages=["eng"])
    splits = task.metadata.eval_splits
    return task.filter_eval_splits([_SPLIT if _SPLIT in splits else splits[0]])


@cache
def _subsets() -> dict[str, list[str]]:
    """Return the subsets of each task that the benchmark scores."""
    return {
        task.metadata.name: list(task.hf_subsets) for task in mteb.get_benchmark(BENCHMARK).tasks
    }


@cache
def _names() -> list[str]:
    return [task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)]


def _require_known(name: str, names: Sequence[str], where: str, role: str = "") -> None:
    if name in names:
        return
    by_lower = {other.lower(): other for other in names}
    matches = get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    near = [by_lower[match] for match in matches]
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise InputError(f"expected a name that {where} knows{role}, found {name!r}{hint}")


@contextmanager
def _cached(folder: Path | None) -> Iterator[None]:
    """Have local data converted under its content's hash.

    datasets finds a converted folder again by its name and configuration, whatever is in it.
    """
    if folder is None:
        yield
        return
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = Path(before) / "anna-export" / digest.hexdigest()[:24]
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before
