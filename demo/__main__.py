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

from anna_train.demo import DemoModels, heldout_texts, make_models
from anna_train.kept import Kept, content_hash

from anna_export.artifact import PARITY_FILE, Artifact, open_artifact
from anna_export.cli.shown import print_rows, print_table, size, stage
from anna_export.errors import AnnaError
from anna_export.hardware import hardware
from anna_export.spec import Precision
from anna_export.versions import installed, source_sha256

OUT = Path("build/demo")
TOOL = Path(sys.executable).with_name("anna-export")
SPEED_TEXTS: Final = 256
# what is made in each precision, in this order
ARTIFACTS: Final[dict[str, str]] = {
    Precision.FP32: "artifact",
    Precision.FP8: "artifact-fp8",
    Precision.INT8: "artifact-int8",
    Precision.INT4: "artifact-int4",
}
# what each stage makes, and its name in the table
STAGES: Final = {
    "corpus.json": "read docstrings",
    "base": "base model",
    "check.json": "check rows",
    "mined.jsonl": "mine negatives",
    "scored.jsonl": "soft labels",
    "adapter": "tune LoRA",
    "figures.json": "evaluate both",
    **{name: f"export {precision}" for precision, name in ARTIFACTS.items()},
    "retrieval.json": "evaluate artifacts",
    "speed.json": "measure speed",
}


def main(args: Sequence[str] = ()) -> int:
    """Run the demonstration and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--task-data", type=Path, help="Folder of MTEB test data: STS-B and Banking77 too."
    )
    parser.add_argument(
        "--ablate",
        action="store_true",
        help="Tune without each part of the recipe.",
    )
    arguments = parser.parse_args(args)
    started = time.perf_counter()
    models = make_models(OUT, stage=stage, task_data=arguments.task_data)
    if arguments.ablate:
        from demo.ablate import ablate

        return ablate(OUT)
    kept = Kept(OUT)
    stages: dict[str, Mapping[str, float]] = {}
    made_from = {
        "base": content_hash(models.base),
        "adapter": content_hash(models.adapter),
        "anna_export": source_sha256(),
        "versions": installed(),
    }
    artifacts = {
        precision: kept.make(
            name, {**made_from, "precision": precision}, partial(_export, models, precision, stages)
        )
        for precision, name in ARTIFACTS.items()
    }
    # the pairs that base and adapter are evaluated on
    texts = heldout_texts(OUT, 2 * models.figures.evaluated_pairs)
    measured_from = {
        **made_from,
        "texts": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "precisions": list(artifacts),
        "hardware": hardware(),
    }
    retrieval = kept.make(
        "retrieval.json",
        {
            **measured_from,
            "measured_by": _source("retrieve.py"),
            "reference": models.figures.tuned.ndcg_at_10,
        },
        lambda path: _retrieve(artifacts, texts, path),
    )
    speed = kept.make(
        "speed.json",
        {**measured_from, "measured_by": _source("speed.py")},
        lambda path: _measure(models, artifacts, texts[:SPEED_TEXTS], path),
    )
    opened = {precision: open_artifact(folder) for precision, folder in artifacts.items()}
    total = time.perf_counter() - started
    _print_result(models, opened, _read(retrieval), _read(speed))
    _print_times({**models.seconds, **kept.seconds}, stages, total)
    return 0


def _export(
    models: DemoModels, precision: str, stages: dict[str, Mapping[str, float]], path: Path
) -> None:
    """Export by the command, and note the seconds of its stages."""
    arguments = ["--model", str(models.base), "--adapter", str(models.adapter), f"--{precision}"]
    print("$ anna-export", *arguments, "--out", OUT / path.name, file=sys.stderr, flush=True)
    # what it prints names the folder this is made in; the table says the same of the finished one
    finished = subprocess.run(
        [TOOL, *arguments, "--out", path, "--json"], stdout=subprocess.PIPE, check=False
    )
    if finished.returncode != 0:
        sys.exit(finished.returncode)
    stages[path.name] = json.loads(finished.stdout)["seconds"]


# The imports stand here because a run that reuses everything needs no runtime.
def _retrieve(artifacts: Mapping[str, Path], texts: list[str], path: Path) -> None:
    from demo.retrieve import ndcg_at_10

    path.write_text(json.dumps(ndcg_at_10(artifacts, texts[::2], texts[1::2])))


def _measure(
    models: DemoModels, artifacts: Mapping[str, Path], texts: list[str], path: Path
) -> None:
    from demo.speed import measure

    path.write_text(json.dumps(measure(models.base, models.adapter, artifacts, texts)))


def _print_result(
    models: DemoModels,
    artifacts: Mapping[str, Artifact],
    ndcg: Mapping[str, float],
    speed: Mapping[str, Mapping[str, float]],
) -> None:
    manifest, figures = artifacts[Precision.FP32].manifest, models.figures
    parities = {precision: _read(one.folder / PARITY_FILE) for precision, one in artifacts.items()}
    proof, tuned = parities[Precision.FP32], figures.tuned.ndcg_at_10
    pytorch = speed["pytorch"]["texts_per_second"]
    print()
    _print_tasks(models)
    print()
    print_rows(
        {
            "base": f"{models.base}  {manifest.spec.parameters / 1e6:.1f} M parameters, "
            f"trained on {figures.train_pairs:,} docstrings",
            "adapter": f"{models.adapter}  LoRA on all linear layers; nDCG@10 of held-out "
            f"prompted queries {figures.base_prompted.ndcg_at_10:.3f} -> {tuned:.3f}",
            "artifacts": f"{OUT}/  {', '.join(one.folder.name for one in artifacts.values())}",
            "proof": f"{proof['texts']} texts x {1 + len(proof['prompts'])} prompts against base + "
            "adapter in PyTorch; alone: against itself in a batch",
            "nDCG@10": f"{figures.evaluated_pairs} held-out pairs; its change against base + "
            "adapter in PyTorch: a few percent are chance",
            "speed": f"over PyTorch fp32, merged: {pytorch:,.0f} texts/s on {hardware()}; fp8 is "
            "for GPUs, here it runs in fp32",
        }
    )
    lines = [
        {
            "precision": precision,
            "size": size(artifact.size_bytes),
            "mean loss": f"{1 - parities[precision]['mean_cosine']:.1e}",
            "worst cosine": f"{parities[precision]['worst_cosine']:.7f}",
            "alone": f"{parities[precision]['alone_worst_cosine']:.7f}",
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


def _print_tasks(models: DemoModels) -> None:
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
                        one.tf_idf,
                        one.base,
                        one.base_few_shot,
                        one.tuned,
                        one.tuned_few_shot,
                    )
                ),
                one.metric,
            )
            for name, one in scores.items()
        ],
    )


def _verdict(parity: Mapping[str, Any]) -> str:
    if parity["floor"] is not None:
        return f"{parity['verdict']}: worst >= {parity['floor']}"
    return f"{parity['verdict']}: loss <= {parity['max_loss']}"


def _print_times(
    seconds: Mapping[str, float], stages: Mapping[str, Mapping[str, float]], total: float
) -> None:
    print()
    print_table(
        ("stage", "seconds", "of which"),
        [
            (
                name,
                f"{seconds[made]:.1f}" if made in seconds else "reused",
                ", ".join(f"{part} {spent:.1f}" for part, spent in stages.get(made, {}).items()),
            )
            for made, name in STAGES.items()
        ]
        + [("in all", f"{total:.1f}", "")],
    )


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
