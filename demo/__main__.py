"""`make demo`: train a small model, export it, prove it, measure it, and print one table.

Everything is made under build/demo and reused while what it was made from is the same.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from anna_train.demo import DemoModels, heldout_texts, make_models
from anna_train.kept import Kept, content_hash

import anna_export
from anna_export.artifact import PARITY_FILE, Artifact, open_artifact
from anna_export.cli.shown import print_rows, size
from anna_export.errors import AnnaError
from anna_export.hardware import hardware
from anna_export.versions import installed

OUT = Path("build/demo")
TOOL = Path(sys.executable).with_name("anna-export")
HELDOUT_TEXTS = 256
# what each stage makes, or is called by anna-export --json, and its name in the table
STAGES: Final = {
    "corpus.json": "read docstrings",
    "base": "base model",
    "adapter": "LoRA adapter",
    "figures.json": "evaluate both",
    "merge and write": "merge and write",
    "prove": "prove",
    "speed.json": "measure speed",
}


def main() -> int:
    """Run the demonstration and return its exit code."""
    started = time.perf_counter()
    models, kept = make_models(OUT), Kept(OUT)
    exported: dict[str, float] = {}
    made_from = {
        "base": content_hash(models.base),
        "adapter": content_hash(models.adapter),
        "anna_export": _source_hash(),
        "versions": installed(),
    }
    folder = kept.make("artifact", made_from, lambda path: exported.update(_export(models, path)))
    texts = heldout_texts(OUT, HELDOUT_TEXTS)
    speed = kept.make(
        "speed.json",
        {
            **made_from,
            "texts": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
            "measured_by": content_hash(Path(__file__).with_name("speed.py")),
            "hardware": hardware(),
        },
        lambda path: _measure(models, folder, texts, path),
    )
    seconds = {**models.seconds, **exported, **kept.seconds}
    total = time.perf_counter() - started
    _print(models, open_artifact(folder), json.loads(speed.read_text()), seconds, total)
    return 0


def _export(models: DemoModels, path: Path) -> dict[str, float]:
    """Export by the command, and return the seconds of its stages."""
    arguments = ["--model", str(models.base), "--adapter", str(models.adapter), "--out"]
    print("$ anna-export", *arguments, OUT / path.name, file=sys.stderr, flush=True)
    # what it prints names the folder this is made in; the table says the same of the finished one
    finished = subprocess.run(
        [TOOL, *arguments, path, "--json"], stdout=subprocess.PIPE, check=False
    )
    if finished.returncode != 0:
        sys.exit(finished.returncode)
    return dict(json.loads(finished.stdout)["seconds"])


def _measure(models: DemoModels, artifact: Path, texts: list[str], path: Path) -> None:
    # imported here: a run that reuses everything does not need transformers
    from demo.speed import measure

    path.write_text(json.dumps(measure(models.base, models.adapter, artifact, texts)))


def _print(
    models: DemoModels,
    artifact: Artifact,
    speed: Mapping[str, float],
    seconds: Mapping[str, float],
    total: float,
) -> None:
    manifest, figures = artifact.manifest, models.figures
    parity = json.loads((artifact.folder / PARITY_FILE).read_text(encoding="utf-8"))
    prompted, tuned = figures.base_prompted.ndcg_at_10, figures.tuned.ndcg_at_10
    print()
    print_rows(
        {
            "base": f"{models.base}  {manifest.spec.parameters / 1e6:.1f} M parameters, "
            f"trained on {figures.train_pairs:,} docstrings",
            "adapter": f"{models.adapter}  LoRA on all linear layers; nDCG@10 of held-out "
            f"prompted queries {prompted:.3f} -> {tuned:.3f}",
            "artifact": f"{artifact.folder}  {manifest.precision}, {size(artifact.size_bytes)}",
            "proof": f"{parity['verdict']}: {parity['texts']} texts x "
            f"{1 + len(parity['prompts'])} prompts against base + adapter in PyTorch",
            "worst cosine": f"{parity['worst_cosine']:.7f}, at least {parity['floor']} is needed",
            "mean cosine": f"{parity['mean_cosine']:.7f}",
            "alone or in a batch": f"largest difference {parity['alone_max_abs']:.1e}",
            "speed": f"{speed['artifact_texts_per_second']:,.0f} texts/s, "
            f"{speed['ratio']:.1f} x PyTorch fp32, merged "
            f"({speed['pytorch_texts_per_second']:,.0f} texts/s)",
        }
        | {
            f"time: {name}": f"{seconds[made]:6.1f} s" if made in seconds else f"{'reused':>8}"
            for made, name in STAGES.items()
        }
        | {"time: in all": f"{total:6.1f} s"}
    )


def _source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(anna_export.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AnnaError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
