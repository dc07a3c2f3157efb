"""What each part of the training recipe is worth: tuned without it, with three seeds each."""

import csv
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml
from anna_train.mining.margin import AdaptiveMargin
from anna_train.mining.mine import mine
from anna_train.mining.score import score
from anna_train.mining.settings import MiningSettings
from anna_train.recipe import read_tune_recipe
from anna_train.run.tune import tune

from anna_export.console.output import print_line, print_table, stage
from anna_export.machine.hardware import hardware
from anna_export.machine.versions import installed
from anna_export.progress import Progress, Stage
from demo.output_cache import OutputCache, content_hash

SEEDS: Final = (0, 1, 2)
# Half of the demonstration's: fifteen runs in a quarter of an hour.
STEPS: Final = 32
ROWS, ROWS_NO_MARGIN = "scored.jsonl", "scored-no-margin.jsonl"
FIGURES: Final = ("zero-shot", "few-shot")
# What is changed in the recipe, by the name of the row.
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "whole recipe": {},
    "no examples": {"examples": {"least": 0, "most": 0}},
    "no soft labels": {"loss": {"soft_labels": 0}},
    "no margin": {"data": [{"path": ROWS_NO_MARGIN, "task": "query"}]},
    # without negatives of its own, a row has nothing to be softly labelled either
    "no hard negatives": {"batch": {"negatives": 0}},
}


def ablate(out: Path) -> int:
    """Tune every variant with every seed, print how well each retrieves, and return 0.

    Finished runs are kept, so that an interrupted one goes on. The figures are written, with
    hardware and versions, to `OUT/ablation.json`.

    Args:
        out: The demonstration's folder, with its base and rows.
    """
    cache = OutputCache(out)
    mined = {"rows": content_hash(out / "rows.jsonl"), "margin": 0}
    cache.make(ROWS_NO_MARGIN, mined, partial(_without_margin, out))
    recipe = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
    samples: dict[str, list[dict[str, float]]] = {}
    for number, (name, changes) in enumerate(VARIANTS.items()):
        samples[name] = []
        for seed in SEEDS:
            run_number = number * len(SEEDS) + seed + 1
            titled_stage = _titled(f"{run_number}/{len(VARIANTS) * len(SEEDS)} {name}")
            variant = _changed(recipe, changes, seed)
            samples[name].append(
                _run(cache, variant, f"ablation-{number}-{seed}.json", titled_stage)
            )
    (out / "ablation.json").write_text(json.dumps(_record(samples), indent=2) + "\n")
    _print(samples)
    return 0


def _run(cache: OutputCache, recipe: dict[str, Any], name: str, stage: Stage) -> dict[str, float]:
    """Return one run's figures, before and after."""
    made_from = {
        "recipe": recipe,
        "base": content_hash(cache.folder / "base"),
        "rows": content_hash(cache.folder / recipe["data"][0]["path"]),
        "versions": installed(),
    }

    def make(path: Path) -> None:
        # beside the recipe's own files, which it names by their places
        recipe_file = cache.folder / "ablation.yaml"
        recipe_file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        adapter = path.with_suffix("")
        tune(read_tune_recipe(recipe_file), adapter, stage)
        with (adapter / "training" / "evaluations.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        figures = {
            f"{figure} {when}": float(row[f"heldout {figure}"])
            for figure in FIGURES
            for when, row in (("before", rows[0]), ("after", rows[-1]))
        }
        path.write_text(json.dumps(figures), encoding="utf-8")

    return dict(json.loads(cache.make(name, made_from, make).read_text(encoding="utf-8")))


def _changed(recipe: dict[str, Any], changes: dict[str, Any], seed: int) -> dict[str, Any]:
    variant = recipe | {"seed": seed, "steps": STEPS}
    variant["evaluation"] = recipe["evaluation"] | {"every": STEPS}
    for part, change in changes.items():
        variant[part] = variant[part] | change if isinstance(change, dict) else change
    return variant


def _without_margin(out: Path, path: Path) -> None:
    """Mine and score the rows, taking all that scores no higher than the positive."""
    margin = AdaptiveMargin(absolute=0, relative=0, spread=0)
    mined = path.with_name("mined.jsonl")
    mine(out / "rows.jsonl", mined, MiningSettings(margin=margin), stage=stage)
    score(mined, path, stage=stage)


def _record(samples: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    figures = [
        {
            "name": f"{name}: nDCG@10 {figure} after tuning",
            "value": statistics.median(values),
            "unit": "nDCG@10",
            "spread": [min(values), max(values)],
        }
        for name, runs in samples.items()
        for figure in FIGURES
        for values in [[run[f"{figure} after"] for run in runs]]
    ]
    return {
        "machine": {"hardware": hardware()},
        "versions": installed(),
        "figures": figures,
        "samples": samples,
        "not_run": [],
    }


def _print(samples: dict[str, list[dict[str, float]]]) -> None:
    def cell(values: list[float]) -> str:
        return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    print_table(
        ["nDCG@10 of held-out queries", *FIGURES, ""],
        [
            [name, *(cell([run[f"{figure} after"] for run in runs]) for figure in FIGURES), ""]
            for name, runs in samples.items()
        ],
    )
    print_line("")
    print_line(
        f"{STEPS} steps; median of {len(SEEDS)} seeds (smallest to largest); overlap is chance"
    )


def _titled(title: str) -> Stage:
    """Return what shows a run's steps under its title, and nothing of what stands before them."""

    @contextmanager
    def stage(name: str, unit: str) -> Iterator[Progress | None]:
        if name != "tune":
            yield None
            return
        with stage(title, unit) as progress:
            yield progress

    return stage
