"""Steps a second of `anna-train tune`, against sentence-transformers' cached loss.

    python -m benchmarks.holds.training  five rounds; ten minutes
    python -m benchmarks.holds.training --quick  three rounds, fewer settings of theirs

The demo's base (4 M parameters), LoRA in all linear layers, fp32, one thread: 64 queries, each with
a positive and three negatives of its own, with and without three examples in front of every query.
Ours is the step that `tune` takes; theirs is CachedMultipleNegativesRankingLoss over the same
texts, cut and prompted beforehand, with the fastest of several mini-batch settings. Each
measurement is a process of its own, in turn. Before they are timed, both must find the same
gradient. Beside a ratio stands its bound: what it would be if ours took no longer than one forward
pass and the gradient of its inputs, each token once, at the machine's fp32 peak.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import yaml

from benchmarks.lib.record import Figure, Results, main, models_option, python_module, say
from demo.corpus import read_corpus
from demo.models import make_models

QUERIES: Final = 64
NEGATIVES: Final = 3
GROUP: Final = 16
# Enough for those in which both see the same.
PLANNED: Final = 16
# Ours: about what 64 documents of theirs take, padding included.
MINI_BATCH_TOKENS: Final = 4096
# Examples in front of every query, and what our steps over theirs should reach.
TARGET: Final = {0: 1.0, 3: 2.0}
THEIRS: Final[tuple[dict[str, int], ...]] = (
    {"mini_batch_size": 16},
    {"mini_batch_size": 32},
    {"mini_batch_size": 64},
    {"mini_batch_num_tokens": 1024},
    {"mini_batch_num_tokens": 4096},
)
QUICK_THEIRS: Final = THEIRS[1:3]
SAME_GRADIENT: Final = 1e-4
# Forward, and the gradient of inputs; caching's second forward pass is what memory costs.
PASSES: Final = 2


def measure(arguments: Namespace) -> Results:
    """Run the benchmark."""
    figures: list[Figure] = []
    samples: dict[str, Any] = {"mini_batch_tokens": MINI_BATCH_TOKENS}
    base = make_models(arguments.models).base.absolute()
    with tempfile.TemporaryDirectory(prefix="anna-training-") as name:
        folder = Path(name)
        _write_data(folder)
        peak = _ask(folder, "peak", {})["fp32"]
        samples["fp32 operations a second, one thread"] = peak
        for examples in TARGET:
            recipe = _write_recipe(folder, base, examples)
            figures += _of_examples(folder, recipe, examples, peak, arguments.quick, samples)
    return Results(figures, samples)


def _of_examples(
    folder: Path,
    recipe: Path,
    examples: int,
    peak: float,
    quick: bool,
    samples: dict[str, Any],
) -> list[Figure]:
    label = f"{examples} examples" if examples else "no examples"
    say(f"{label}: comparing gradients")
    ask = {"recipe": str(recipe), "steps": 1, "mini_batch": THEIRS[1]}
    check = _ask(folder, "check", ask)
    say(
        f"{label}: tokens of a step, with padding: ours {check['our_tokens']}, "
        f"{check['our_padded_tokens']}, theirs {check['their_tokens']}, "
        f"{check['their_padded_tokens']}; "
        f"multiply-adds theirs over ours "
        f"{check['their_multiply_adds'] / check['our_multiply_adds']:.2f}"
    )
    if not check["same_ids"]:
        sys.exit(f"expected both to read the same token ids, found others ({label})")
    settings = {}
    for mini_batch in QUICK_THEIRS if quick else THEIRS:
        step_seconds = _ask(folder, "theirs", ask | {"mini_batch": mini_batch})["seconds"]
        settings[json.dumps(mini_batch)] = statistics.mean(step_seconds)
        say(f"{label}: theirs with {mini_batch}: {settings[json.dumps(mini_batch)]:.2f} s a step")
    fastest = min(settings, key=lambda name: settings[name])
    seconds: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
    rounds, steps = (3, 1) if quick else (5, 3)
    for index in range(rounds):
        say(f"{label}: round {index + 1} of {rounds}")
        question = {"recipe": str(recipe), "steps": steps, "mini_batch": json.loads(fastest)}
        for way in seconds:
            seconds[way].append(_ask(folder, way, question)["seconds"])
    least = 2 * PASSES * check["our_multiply_adds"] / peak
    samples[label] = {
        "check": check,
        "their settings, seconds a step": settings,
        "fastest": json.loads(fastest),
        "seconds": seconds,
        "least seconds": least,
    }
    means = {way: [statistics.mean(steps) for steps in seconds[way]] for way in seconds}
    for way, way_means in means.items():
        say(f"{label}: {way} {1 / statistics.median(way_means):.3f} steps a second")
    ratios = [b / a for a, b in zip(means["ours"], means["theirs"], strict=True)]
    difference, target, median = (
        check["gradient_difference"],
        TARGET[examples],
        statistics.median(ratios),
    )
    return [
        Figure(
            f"{label}: gradient against theirs, worst of a weight",
            difference,
            "",
            f"<= {SAME_GRADIENT:g}",
            difference <= SAME_GRADIENT,
        ),
        Figure(
            f"{label}: our steps over theirs",
            median,
            "x",
            f">= {target:g}",
            median >= target,
            (min(ratios), max(ratios)),
            statistics.median(means["theirs"]) / least,
        ),
    ]


def _write_data(folder: Path) -> None:
    """Write rows whose documents are all different, so that none is computed once for two."""
    pairs = read_corpus().train
    rows = pairs[: len(pairs) // (1 + NEGATIVES)]
    others = iter(pairs[len(rows) :])
    lines = [
        {
            "query": pair.query,
            "pos": [pair.document],
            "neg": [next(others).document for _ in range(NEGATIVES)],
        }
        for pair in rows
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    instruction = "Given a summary, retrieve the documentation it belongs to"
    tasks = {"query": {"format": "e5", "instruction": instruction}}
    (folder / "prompts.json").write_text(json.dumps({"default": "query", "tasks": tasks}))


def _write_recipe(folder: Path, base: Path, examples: int) -> Path:
    recipe = {
        "base": str(base),
        "prompts": "prompts.json",
        "data": [{"path": "rows.jsonl", "task": "query"}],
        "batch": {"queries": QUERIES, "negatives": NEGATIVES, "group": GROUP},
        "steps": PLANNED,
        "limits": {"query": 32, "document": 64, "example_query": 32, "example_response": 64},
        "examples": {"least": examples, "most": examples},
        "loss": {"temperature": 0.05, "soft_labels": 0, "false_negative_margin": None},
        "lora": {"rank": 16, "alpha": 16},
        "run": {"precision": "fp32", "threads": 1, "mini_batch_tokens": MINI_BATCH_TOKENS},
    }
    path = folder / f"recipe-{examples}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _ask(folder: Path, kind: str, ask: dict[str, Any]) -> dict[str, Any]:
    path = folder / "ask.json"
    path.write_text(json.dumps(ask))
    command = python_module("holds._training_worker", kind, path)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return dict(json.loads(ran.stdout))


if __name__ == "__main__":
    sys.exit(
        main("training", measure, quick="Three rounds, fewer settings.", options=models_option)
    )
