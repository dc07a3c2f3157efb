"""Whether `anna-export bench` can be believed: runs that agree, and a thing against itself.

    python -m benchmarks.statistics.agreement  six runs, five comparisons; 5 minutes
    python -m benchmarks.statistics.agreement --quick  three and two

A random model of 5 M parameters in int8, whose calls take a millisecond: the smallest times are the
noisiest. Every two runs are held against one another, and the artifact is timed against itself.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import transformers

from anna_export.bench.statistics import Interval
from benchmarks.lib.record import Figure, Results, main, say
from demo.tokenizer import build_tokenizer, load_sentencepiece, save_tokenizer

MAX_TOKENS = 512
LEAST_AGREEMENT = 0.95
_COMMAND = (sys.executable, "-c", "from anna_export.cli import main; main()")


def measure(arguments: Namespace) -> Results:
    """Run the benchmark."""
    count, comparisons = (3, 2) if arguments.quick else (6, 5)
    results = Results()
    with tempfile.TemporaryDirectory() as folder:
        artifact = _artifact(Path(folder))
        runs = []
        for number in range(count):
            say(f"run {number + 1} of {count}")
            runs.append(_bench(artifact)["rows"])
        verdicts: list[str] = []
        for number in range(comparisons):
            say(f"comparison {number + 1} of {comparisons}")
            rows = _bench(artifact, "--against", str(artifact))["rows"]
            verdicts += [row["versus"]["verdict"] for row in rows]
    agree = [
        _spread(row).overlaps(_spread(other_row))
        for first, second in itertools.combinations(runs, 2)
        for row, other_row in zip(first, second, strict=True)
    ]
    share, same = sum(agree) / len(agree), verdicts.count("no difference") / len(verdicts)
    results.samples |= {
        "texts_per_second": [[row["texts_per_second"] for row in rows] for rows in runs],
        "verdicts": verdicts,
    }
    target = f">= {LEAST_AGREEMENT}"
    results.figures += [
        Figure(
            f"rows of two runs whose spreads meet, of {len(agree)}",
            share,
            "",
            target,
            share >= LEAST_AGREEMENT,
        ),
        Figure(
            f"rows against itself that show no difference, of {len(verdicts)}",
            same,
            "",
            target,
            same >= LEAST_AGREEMENT,
        ),
    ]
    return results


def _artifact(folder: Path) -> Path:
    """Write and export the model."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=32000,
        max_position_embeddings=MAX_TOKENS,
        sliding_window=None,
    )
    transformers.MistralModel(config).save_pretrained(folder / "base")
    save_tokenizer(build_tokenizer(load_sentencepiece(), MAX_TOKENS), folder / "base")
    options = ["--model", str(folder / "base"), "--int8", "--out", str(folder / "artifact")]
    subprocess.run([*_COMMAND, *options, "--no-verify"], check=True, stdout=sys.stderr)
    return folder / "artifact"


def _bench(artifact: Path, *options: str) -> dict[str, Any]:
    command = [*_COMMAND, "bench", str(artifact), *options, "--json"]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    run_json: dict[str, Any] = json.loads(run.stdout)
    return run_json


def _spread(row: dict[str, Any]) -> Interval:
    return Interval(**row["texts_per_second"])


if __name__ == "__main__":
    sys.exit(main("agreement", measure, quick="Three runs and two comparisons."))
