"""`make demo`: train a small model, export it in four precisions, prove, measure, print a table.

Everything is made under build/demo and reused while what it was made from is the same.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from anna_export.artifact.folder import open_artifact
from anna_export.console.output import stage
from anna_export.errors import AnnaError, InconclusiveError, ParityError
from anna_export.machine.hardware import hardware
from anna_export.machine.versions import installed, source_sha256
from demo import show
from demo.corpus import sources_version
from demo.models import DemoModels, heldout_texts, make_models, training_pairs
from demo.output_cache import OutputCache, content_hash
from demo.show import ARTIFACTS, ENGINES
from demo.tasks import read_docstrings, write_tasks

OUT = Path("build/demo")
TOOL = Path(sys.executable).with_name("anna-export")
SPEED_TEXTS: Final = 256
BENCH_ROUNDS: Final = 3
REPORTED: Final = ("fp32", "int8", "fp8")


def main(args: Sequence[str] = ()) -> int:
    """Run the demonstration and return its exit code."""
    arguments = _arguments(args)
    started = time.perf_counter()
    models = make_models(OUT, stage=stage, task_data=arguments.task_data)
    if arguments.ablate:
        from demo.ablate import ablate

        return ablate(OUT)
    cache = OutputCache(OUT)
    stages: dict[str, Mapping[str, float]] = {}
    tasks = _make_tasks(cache)
    made_from = {
        "base": content_hash(models.base),
        "adapter": content_hash(models.adapter),
        "tasks": content_hash(tasks),
        "anna_export": source_sha256(),
        "versions": installed(),
    }
    artifacts = {
        precision: cache.make(
            name,
            {**made_from, "precision": precision},
            partial(_export, models, precision, tasks, stages),
        )
        for precision, name in ARTIFACTS.items()
    }
    retrieval, speed = _measured(cache, models, artifacts, made_from)
    page = cache.make(
        "report.html",
        {**made_from, "hardware": hardware(), "artifacts": list(REPORTED)},
        lambda path: _report(artifacts, path),
    )
    opened = {precision: open_artifact(folder) for precision, folder in artifacts.items()}
    total = time.perf_counter() - started
    show.result(models, opened, retrieval, speed, OUT)
    show.parity(opened)
    show.times({**models.seconds, **cache.seconds}, stages, total)
    print(f"\nthe page that shows it all: {page.resolve()}")
    return 0


def _arguments(args: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--task-data", type=Path, help="Folder of MTEB test data: STS-B and Banking77 too."
    )
    parser.add_argument(
        "--ablate", action="store_true", help="Tune without each part of the recipe."
    )
    return parser.parse_args(args)


def _make_tasks(cache: OutputCache) -> Path:
    """Make the folder of docstring tasks that artifacts are verified on."""
    return cache.make(
        "tasks",
        {
            "read": sources_version(),
            "corpus": content_hash(OUT / "corpus.json"),
            "written_by": _source("tasks.py"),
        },
        lambda folder: write_tasks(read_docstrings(training_pairs(OUT)), folder),
    )


def _measured(
    cache: OutputCache,
    models: DemoModels,
    artifacts: Mapping[str, Path],
    made_from: Mapping[str, object],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return each artifact's nDCG@10 and its speed, measured once."""
    # the pairs that base and adapter are evaluated on
    texts = heldout_texts(OUT, 2 * models.figures.evaluated_pairs)
    measured_from = {
        **made_from,
        "texts": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "precisions": list(artifacts),
        "hardware": hardware(),
    }
    retrieval = cache.make(
        "retrieval.json",
        {
            **measured_from,
            "measured_by": _source("retrieve.py"),
            "reference": models.figures.tuned.ndcg_at_10,
        },
        lambda path: _retrieve(artifacts, texts, path),
    )
    speed = cache.make(
        "speed.json",
        {**measured_from, "measured_by": _source("speed.py")},
        lambda path: _measure(models, artifacts, texts[:SPEED_TEXTS], path),
    )
    return _read(retrieval), _read(speed)


def _export(
    models: DemoModels,
    precision: str,
    tasks: Path,
    stages: dict[str, Mapping[str, float]],
    path: Path,
) -> None:
    """Export and verify by the commands, and note the seconds of each stage."""
    adapter = ["--adapter", str(models.adapter)]
    arguments = ["--model", str(models.base), *adapter, f"--{precision}"]
    if precision in ENGINES:
        arguments += ["--target", "tensorrt-rtx"]
    print("$ anna-export", *arguments, "--out", OUT / path.name, file=sys.stderr, flush=True)
    exported = _run(*arguments, "--out", path, allowed=(0,))
    arguments = ["--model", str(models.base), *adapter, "--tier", "quick"]
    arguments += ["--task-data", str(tasks)]
    print("$ anna-export verify", OUT / path.name, *arguments, file=sys.stderr, flush=True)
    started = time.perf_counter()
    cache = ("--cache", OUT / "cache")
    # a verdict that is no pass is a result as well
    verdicts = (0, ParityError.exit_code, InconclusiveError.exit_code)
    _run("verify", path, *arguments, *cache, allowed=verdicts)
    verified = time.perf_counter()
    print("$ anna-export bench", OUT / path.name, file=sys.stderr, flush=True)
    _run("bench", path, "--rounds", BENCH_ROUNDS, allowed=(0,))
    stages[path.name] = {
        **exported["seconds"],
        "verify": verified - started,
        "bench": time.perf_counter() - verified,
    }


def _report(artifacts: Mapping[str, Path], path: Path) -> None:
    """Write the page over the precisions that are shown side by side."""
    folders = [artifacts[precision] for precision in REPORTED]
    print("$ anna-export report", *folders, "--out", OUT / path.name, file=sys.stderr, flush=True)
    _run("report", *folders, "--out", path, allowed=(0,))


def _run(*arguments: object, allowed: Sequence[int]) -> dict[str, Any]:
    """Run anna-export and return what it prints as JSON: it names the folder this is made in."""
    finished = subprocess.run(
        [TOOL, *map(str, arguments), "--json"], stdout=subprocess.PIPE, check=False
    )
    if finished.returncode not in allowed:
        sys.exit(finished.returncode)
    return dict(json.loads(finished.stdout))


# The imports stand here because a run that reuses everything needs no runtime.
def _retrieve(artifacts: Mapping[str, Path], texts: list[str], path: Path) -> None:
    from demo.retrieve import ndcg_at_10

    path.write_text(json.dumps(ndcg_at_10(artifacts, texts[::2], texts[1::2])))


def _measure(
    models: DemoModels, artifacts: Mapping[str, Path], texts: list[str], path: Path
) -> None:
    from demo.speed import measure

    path.write_text(json.dumps(measure(models.base, models.adapter, artifacts, texts)))


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _source(name: str) -> str | None:
    return content_hash(Path(__file__).with_name(name))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except AnnaError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
