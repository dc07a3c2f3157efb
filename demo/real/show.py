"""What `make demo-real` prints and records: scores on tasks, and what each precision loses."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from anna_export.artifact.folder import open_artifact
from anna_export.artifact.manifest import PARITY_FILE
from anna_export.console.output import print_table, size
from benchmarks.lib.record import Figure, Results, write
from demo import show
from demo.real.scores import METRICS, TF_IDF, Scores

NAME: Final = "demo-real"
TUNED: Final = "tuned"


def result(scores: Scores, artifacts: Mapping[str, Path]) -> None:
    """Print a table of scores, one of precisions, and one of the tasks each was verified on."""
    print()
    tasks = list(scores[TF_IDF])
    rows = [(task, *(f"{of[task]:.3f}" for of in scores.values()), METRICS[task]) for task in tasks]
    print_table(("task", *scores, "metric"), rows)
    print()
    print_table(
        ("precision", "size", "mean loss", "worst cosine", "proof", "the text that loses most"),
        [_line(precision, folder) for precision, folder in artifacts.items()],
    )
    show.parity({precision: open_artifact(folder) for precision, folder in artifacts.items()})


def record(
    scores: Scores, artifacts: Mapping[str, Path], adapter: Path, seconds: Mapping[str, float]
) -> Path:
    """Write the figures into benchmarks/results, and return the file."""
    results = Results()
    for name, of in scores.items():
        for task, value in of.items():
            results.figures.append(_score(name, task, value, scores[TF_IDF][task]))
    for precision, folder in artifacts.items():
        vectors = _parity(folder)["vectors"]
        loss, passed = 1 - vectors["mean_cosine"], vectors["verdict"] == "pass"
        threshold = vectors["thresholds"]["max_loss"]
        target = "proof" if threshold is None else f"<= {threshold}"
        results.figures.append(Figure(f"{precision}: mean loss", loss, "1 - cos", target, passed))
    with (adapter / "training" / "log.csv").open(encoding="utf-8") as log:
        steps = list(csv.DictReader(log))
    results.samples = {
        "seconds": dict(seconds),
        "steps": [float(step["seconds"]) for step in steps],
        "losses": [float(step["loss"]) for step in steps],
        "parity": {precision: _parity(folder) for precision, folder in artifacts.items()},
    }
    return write(NAME, results, None)


def _score(name: str, task: str, value: float, lexical: float) -> Figure:
    """Return a score; the tuned model's is to be above TF-IDF's."""
    target, holds = "", True
    if name == TUNED:
        target, holds = f"> {lexical:.3f}", value > lexical
    return Figure(f"{task}: {name}", value, METRICS[task], target, holds)


def _line(precision: str, folder: Path) -> tuple[str, ...]:
    vectors = _parity(folder)["vectors"]
    return (
        precision,
        size(open_artifact(folder).size_bytes),
        f"{1 - vectors['mean_cosine']:.1e}",
        f"{vectors['worst_cosine']:.7f}",
        str(vectors["verdict"]),
        repr(vectors.get("worst_text", ""))[:40],
    )


def _parity(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / PARITY_FILE).read_text(encoding="utf-8")))
