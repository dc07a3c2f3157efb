"""What the demonstration prints: what was made, how good and how fast it is, what took how long."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import PARITY_FILE
from anna_export.console.output import print_rows, print_table, size
from anna_export.machine.hardware import hardware
from anna_export.spec import Precision
from demo.models import DemoModels

# what is made in each precision, in this order
ARTIFACTS: Final[dict[str, str]] = {
    Precision.FP32: "artifact",
    Precision.FP8: "artifact-fp8",
    Precision.INT8: "artifact-int8",
    Precision.INT4: "artifact-int4",
}
# those that TensorRT-RTX builds engines of
ENGINES: Final = (Precision.FP8,)
# what each stage makes, and its name in the table
STAGES: Final = {
    "corpus.json": "read docstrings",
    "base": "base model",
    "check.json": "check rows",
    "mined.jsonl": "mine negatives",
    "scored.jsonl": "soft labels",
    "adapter": "tune LoRA",
    "figures.json": "evaluate both",
    "tasks": "write tasks",
    **{name: f"export, verify, time {precision}" for precision, name in ARTIFACTS.items()},
    "retrieval.json": "evaluate artifacts",
    "speed.json": "measure speed",
    "report.html": "report",
}


def result(
    models: DemoModels,
    artifacts: Mapping[str, Artifact],
    ndcg: Mapping[str, float],
    speed: Mapping[str, Mapping[str, float]],
    out: Path,
) -> None:
    """Print what was made, and a line for each precision."""
    parities = {
        precision: _parity(artifact)["vectors"] for precision, artifact in artifacts.items()
    }
    print()
    _tasks(models)
    print()
    _facts(models, artifacts, parities, speed, out)
    tuned = models.figures.tuned.ndcg_at_10
    lines = [
        {
            "precision": precision,
            "size": size(artifact.size_bytes),
            "mean loss": f"{1 - parities[precision]['mean_cosine']:.1e}",
            "worst cosine": f"{parities[precision]['worst_cosine']:.7f}",
            "alone": f"{parities[precision]['batch1_worst_cosine']:.7f}",
            "nDCG@10": f"{ndcg[precision]:.4f}",
            "change": f"{100 * (ndcg[precision] / tuned - 1):+.2f} %",
            "texts/s": f"{speed[precision]['texts_per_second']:,.0f}",
            "speed": f"{speed[precision]['ratio']:.1f} x",
            "proof": _verdict(parities[precision]),
        }
        for precision, artifact in artifacts.items()
    ]
    print()
    print_table(list(lines[0]), [list(line.values()) for line in lines])


def _facts(
    models: DemoModels,
    artifacts: Mapping[str, Artifact],
    parities: Mapping[str, Mapping[str, Any]],
    speed: Mapping[str, Mapping[str, float]],
    out: Path,
) -> None:
    """Print what was made, and how it was compared."""
    manifest, figures = artifacts[Precision.FP32].manifest, models.figures
    proof, tuned = parities[Precision.FP32], figures.tuned.ndcg_at_10
    pytorch = speed["pytorch"]["texts_per_second"]
    folders = [artifact.folder.name for artifact in artifacts.values()]
    print_rows(
        {
            "base": f"{models.base}  {manifest.spec.parameters / 1e6:.1f} M parameters, "
            f"trained on {figures.train_pairs:,} docstrings",
            "adapter": f"{models.adapter}  LoRA on all linear layers; nDCG@10 of held-out "
            f"prompted queries {figures.base_prompted.ndcg_at_10:.3f} -> {tuned:.3f}",
            "artifacts": f"{out}/  {', '.join(folders)}",
            "proof": f"{proof['texts']} texts x {1 + len(proof['prompts'])} prompts against base + "
            "adapter in PyTorch; alone: against itself in a batch",
            "verified": "scores by mteb's evaluators, and each artifact's difference; ? is for too "
            "few texts to tell",
            "nDCG@10": f"{figures.evaluated_pairs} held-out pairs; its change against base + "
            "adapter in PyTorch: a few percent are chance",
            "speed": f"over PyTorch fp32, merged: {pytorch:,.0f} texts/s on {hardware()}; fp8 is "
            "for GPUs, here it runs in fp32",
        }
    )


def _tasks(models: DemoModels) -> None:
    """Print how well base and adapter do, without and with examples in the prompt."""
    scores = models.figures.tasks
    print_table(
        ("task", "TF-IDF", "base", "few-shot", "tuned", "few-shot", "metric"),
        [
            (
                name,
                *(
                    "-" if value is None else f"{value:.3f}"
                    for value in (
                        task.tf_idf,
                        task.base,
                        task.base_few_shot,
                        task.tuned,
                        task.tuned_few_shot,
                    )
                ),
                task.metric,
            )
            for name, task in scores.items()
        ],
    )


def parity(artifacts: Mapping[str, Artifact]) -> None:
    """Print each artifact's scores on the tasks, and its verdicts."""
    tasks = {precision: _parity(artifact)["tasks"] for precision, artifact in artifacts.items()}
    verified = next(tasks_of for tasks_of in tasks.values() if tasks_of)
    rows = [
        (
            task["name"],
            f"{task['difference']['reference']:.4f}",
            *(_change(tasks_of and tasks_of["tasks"][index]) for tasks_of in tasks.values()),
            task["metric"],
        )
        for index, task in enumerate(verified["tasks"])
    ]
    means = [
        tasks_of and {"difference": tasks_of["mean"], "verdict": tasks_of["verdict"]}
        for tasks_of in tasks.values()
    ]
    reference = f"{verified['mean']['reference']:.4f}"
    rows.append(("mean over tasks", reference, *map(_change, means), ""))
    print()
    print_table(("verified task", "pytorch", *tasks, "metric"), rows)


def _change(task: Mapping[str, Any] | None) -> str:
    if task is None:
        return "vectors fail"
    verdict = "?" if task["verdict"] == "inconclusive" else task["verdict"]
    return f"{task['difference']['difference']:+.4f} {verdict}"


def _verdict(parity: Mapping[str, Any]) -> str:
    if parity["thresholds"]["min_cosine"] is not None:
        return f"{parity['verdict']}: worst >= {parity['thresholds']['min_cosine']}"
    return f"{parity['verdict']}: loss <= {parity['thresholds']['max_loss']}"


def times(
    seconds: Mapping[str, float], stages: Mapping[str, Mapping[str, float]], total: float
) -> None:
    """Print the seconds of each stage, and of the parts of an export."""
    print()
    print_table(
        ("stage", "seconds", "of which"),
        [
            (
                name,
                f"{seconds[output]:.1f}" if output in seconds else "reused",
                ", ".join(f"{part} {spent:.1f}" for part, spent in stages.get(output, {}).items()),
            )
            for output, name in STAGES.items()
        ]
        + [("in all", f"{total:.1f}", "")],
    )


def _parity(artifact: Artifact) -> dict[str, Any]:
    return dict(json.loads((artifact.folder / PARITY_FILE).read_text(encoding="utf-8")))
