"""`make demo`: train a small model, export it, prove it, measure it, and print one table.

Everything is made under build/demo and reused while what it was made from is the same.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from anna_train.demo import DemoModels, heldout_texts, make_models
from anna_train.kept import Kept, content_hash

import anna_export
from anna_export.artifact import PARITY_FILE, Artifact, open_artifact
from anna_export.cli.shown import print_rows, size
from anna_export.errors import AnnaError

OUT = Path("build/demo")
TOOL = Path(sys.executable).with_name("anna-export")
HELDOUT_TEXTS = 256


def main() -> int:
    """Run the demonstration and return its exit code."""
    clock = [time.perf_counter()]
    models = make_models(OUT)
    clock.append(time.perf_counter())
    kept = Kept(OUT)
    made_from = {
        "base": content_hash(models.base),
        "adapter": content_hash(models.adapter),
        "anna_export": _source_hash(),
    }
    folder = kept.make("artifact", made_from, lambda path: _export(models, path))
    clock.append(time.perf_counter())
    texts = heldout_texts(OUT, HELDOUT_TEXTS)
    speed = kept.make(
        "speed.json",
        {**made_from, "texts": hashlib.sha256("\0".join(texts).encode()).hexdigest()},
        lambda path: _measure(models, folder, texts, path),
    )
    clock.append(time.perf_counter())
    _print(models, open_artifact(folder), json.loads(speed.read_text()), clock)
    return 0


def _export(models: DemoModels, path: Path) -> None:
    arguments = ["--model", str(models.base), "--adapter", str(models.adapter), "--out"]
    print("$ anna-export", *arguments, OUT / path.name, file=sys.stderr, flush=True)
    # its table names the folder this is made in; the one below says the same of the finished one
    finished = subprocess.run([TOOL, *arguments, path], stdout=subprocess.DEVNULL, check=False)
    if finished.returncode != 0:
        sys.exit(finished.returncode)


def _measure(models: DemoModels, artifact: Path, texts: list[str], path: Path) -> None:
    # imported here: a run that reuses everything needs neither torch nor transformers
    from demo.speed import measure

    path.write_text(json.dumps(measure(models.base, models.adapter, artifact, texts)))


def _print(
    models: DemoModels, artifact: Artifact, speed: dict[str, float], clock: list[float]
) -> None:
    manifest, figures = artifact.manifest, models.figures
    parity = json.loads((artifact.folder / PARITY_FILE).read_text(encoding="utf-8"))
    trained, exported, measured = (end - start for start, end in pairwise(clock))
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
            "time: train": f"{trained:.1f} s",
            "time: export, prove": f"{exported:.1f} s",
            "time: measure speed": f"{measured:.1f} s",
            "time: in all": f"{clock[-1] - clock[0]:.1f} s",
        }
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
