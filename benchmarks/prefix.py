"""What a baked few-shot prompt costs: against no prompt, and against computing it with every text.

    python benchmarks/prefix.py          five rounds; about twenty minutes
    python benchmarks/prefix.py --quick  two rounds, three shapes, shorter prompts

A random model of 164 M parameters beside its embedding, ONNX Runtime on 2 cores, fp32 and int8.
Each round is a process of its own, all cases in turn in one session. Costs are of the texts as
`encode` batches them, tokenising left out. Beside a ratio stands its bound: what it would be if
the prompt added its multiply-adds at the machine's fp32 peak, and nothing else. What attending to
it takes, in fp32 in either precision, is held against the bare MatMul, Softmax, MatMul. Memory is
that of the same texts by the artifact without prompts and by the one with them. Exactness is that
of the demo's model, against PyTorch computing the whole prompt.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import repository_root  # noqa: F401
from charts import Panel, draw_lines
from peaks import Peaks
from record import RESULTS, Figure, record, say
from small_model import write_small_model

from anna_export.artifact.folder import open_artifact
from anna_export.artifact.prefixes import StoredPrefixes
from anna_export.backends import open_encoder
from anna_export.console.output import stage
from anna_export.export.edit_prompts import add_prompts
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.machine.hardware import hardware
from anna_export.quantise.options import Fp32, storage
from anna_export.reference.load import open_reference
from anna_export.spec import EmbeddingSpec, Precision
from anna_export.text.prompts import Prompt, Prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.texts import long_text, ordinary_texts
from anna_export.weights.checkpoint import Checkpoint
from demo.corpus import read_corpus
from demo.models import make_models

CORES: Final = 2
MAX_TOKENS: Final = 2400
PROMPT: Final = 512
SHAPES: Final = ((1, 16), (1, 64), (1, 256), (32, 16), (32, 64), (32, 256))
QUICK_SHAPES: Final = ((1, 16), (1, 64), (8, 16))
CHART_TOKENS: Final = (16, 32, 64, 128, 256, PROMPT, 1024, 2000)
CHART_SHAPE: Final = (1, 16)
REACH: Final = {Precision.FP32: 1.2, Precision.INT8: 1.8}
BARE_REACH: Final = 1.5
WHOLE_REACH: Final = 10.0
MEMORY_REACH: Final = 1.05
OPEN_REACH: Final = 1.1
MANY: Final = 50
EXACT_TOKENS: Final = (1, 20, 150, PROMPT, 2000)
EXACT_TEXTS: Final = 1000
EXACT: Final = 0.999999


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time: a batch of texts, behind a prompt or not."""

    batch: int
    text: int
    prompt: str
    way: str  # "baked" (or no prompt at all), "whole", or "bare" products

    @property
    def name(self) -> str:
        """Its key in an answer."""
        return f"{self.batch}x{self.text} {self.prompt or 'none'} {self.way}"

    def to_json(self) -> dict[str, Any]:
        """Return what a worker is asked."""
        return {name: getattr(self, name) for name in (*self.__slots__, "name")}


def main() -> int:
    """Run the benchmark and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="Two rounds, three shapes.")
    parser.add_argument("--models", type=Path, default=Path("build/demo"), help="Demo's folder.")
    parser.add_argument("--json", type=Path, help="Results file (default: a dated one).")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    figures: list[Figure] = []
    samples: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="anna-prefix-") as name:
        folder = Path(name)
        figures.append(_exactness(folder, arguments.models, arguments.quick, samples))
        say("writing the model")
        write_small_model(folder / "base")
        spec = Checkpoint.open(folder / "base").spec
        peaks = Peaks(**json.loads(_python("peaks.py")))
        for precision in REACH:
            figures += _of_precision(folder, precision, spec, peaks, arguments.quick, samples)
    path = arguments.json or RESULTS / f"{date.today().isoformat()}-prefix.json"
    code = record("prefix", figures, samples, [], path)
    _draw(path.with_suffix(".svg"), samples)
    return code


def _of_precision(
    folder: Path,
    precision: Precision,
    spec: EmbeddingSpec,
    peaks: Peaks,
    quick: bool,
    samples: dict[str, Any],
) -> list[Figure]:
    say(f"exporting {precision}")
    plain, prompted, many = (folder / f"{precision}-{which}" for which in ("no", "some", "50"))
    # random weights lose more than trained ones
    loss = None if precision is Precision.FP32 else 1.0
    base = folder / "base"
    recipe = Recipe(base, None, plain, storage(precision, max_loss=loss), MAX_TOKENS, verify=False)
    export(recipe, stage)
    tokens = [count for count in CHART_TOKENS if not quick or count <= PROMPT]
    for copy in (prompted, many):
        shutil.copytree(plain, copy, copy_function=os.link)
    tokeniser = open_artifact(plain).tokeniser()
    prompts = {str(count): _prompt(tokeniser, count) for count in tokens}
    add_prompts(prompted, Prompts(prompts), overwrite=False)
    few = {f"task{index}": Prompt(f"Task {index}. {long_text(40)}: ") for index in range(MANY)}
    add_prompts(many, Prompts(few), overwrite=False)
    shapes = QUICK_SHAPES if quick else SHAPES
    rounds = 2 if quick else 5
    found: dict[str, list[float]] = {}
    cases = _cases(shapes, tokens)
    for index in range(rounds):
        say(f"{precision}: round {index + 1} of {rounds}")
        asked = {"artifact": str(prompted), "cases": [case.to_json() for case in cases]}
        for case, seconds in _ask(folder, "times", asked).items():
            found.setdefault(case, []).append(seconds)
    samples[f"{precision}, seconds"] = found
    bounds = {case: _added_seconds(spec, peaks, case) for case in cases if case.way == "baked"}
    samples[f"{precision}, least seconds added"] = {
        case.name: seconds for case, seconds in bounds.items()
    }
    figures = []
    for batch, text in shapes:
        none, baked, bare = (
            found[Case(batch, text, prompt, way).name]
            for prompt, way in (("", "baked"), (str(PROMPT), "baked"), (str(PROMPT), "bare"))
        )
        label = f"{precision}, {batch} x {text} tokens"
        least = bounds[Case(batch, text, str(PROMPT), "baked")]
        figures.append(
            _figure(
                f"{label}: with {PROMPT} tokens over none",
                [a / b for a, b in zip(baked, none, strict=True)],
                REACH[precision],
                1 + least / statistics.median(none),
            )
        )
        if precision is Precision.INT8:  # fp32's products take so long that their noise is larger
            added = [(a - b) / c for a, b, c in zip(baked, none, bare, strict=True)]
            figures.append(_figure(f"{label}: time added over bare products", added, BARE_REACH))
        if text == CHART_SHAPE[1]:
            whole = found[Case(batch, text, str(PROMPT), "whole").name]
            ratios = [a / b for a, b in zip(whole, baked, strict=True)]
            median = statistics.median(ratios)
            figures.append(
                Figure(
                    f"{label}: whole prompt over baked",
                    median,
                    "x",
                    f">= {WHOLE_REACH:g}",
                    median >= WHOLE_REACH,
                    (min(ratios), max(ratios)),
                )
            )
    figures.append(_memory(folder, precision, plain, prompted, samples))
    figures.append(_opening(folder, precision, plain, many, samples))
    return figures


def _cases(shapes: Sequence[tuple[int, int]], tokens: Sequence[int]) -> list[Case]:
    cases = []
    for batch, text in shapes:
        cases += [Case(batch, text, "", "baked"), Case(batch, text, str(PROMPT), "baked")]
        cases.append(Case(batch, text, str(PROMPT), "bare"))
        if text == CHART_SHAPE[1]:
            cases.append(Case(batch, text, str(PROMPT), "whole"))
    for count in tokens:
        for way in ("baked", "whole"):
            case = Case(*CHART_SHAPE, str(count), way)
            if case not in cases:
                cases.append(case)
    return cases


def _prompt(tokeniser: Tokeniser, tokens: int) -> Prompt:
    """Return a prompt of this many tokens or barely more, `<s>` included."""
    words = 1
    while len(tokeniser.prefix_ids(prompt := Prompt(f"{long_text(words)}: "))) < tokens:
        words += 1
    return prompt


def _added_seconds(spec: EmbeddingSpec, peaks: Peaks, case: Case) -> float:
    """Count what attending to a prompt's keys and values adds, at the machine's fp32 peak."""
    prompt = int(case.prompt or 0)
    queries = case.batch * ((spec.layers - 1) * case.text + 1)
    return 2 * 2 * queries * spec.q_dim * prompt / peaks.fp32


def _figure(name: str, ratios: list[float], reach: float, bound: float | None = None) -> Figure:
    median = statistics.median(ratios)
    spread = (min(ratios), max(ratios))
    return Figure(name, median, "x", f"<= {reach:g}", median <= reach, spread, bound)


def _memory(
    folder: Path, precision: Precision, plain: Path, prompted: Path, samples: dict[str, Any]
) -> Figure:
    """Compare peaks over the same texts, less one copy of the prefix in use."""
    texts = ordinary_texts(64)
    peaks = [
        _ask(folder, "peak", {"artifact": str(artifact), "texts": texts, "prompt": prompt})[
            "peak_bytes"
        ]
        for artifact, prompt in ((plain, ""), (prompted, str(PROMPT)))
    ]
    opened = open_artifact(prompted)
    prompt = opened.manifest.prompts.find(str(PROMPT))
    loaded = StoredPrefixes(opened).load(prompt)
    one_copy = loaded.keys.nbytes + loaded.values.nbytes
    samples[f"{precision}, peak bytes"] = [*peaks, one_copy]
    return _figure(
        f"{precision}: memory with a prompt, less one copy of it, over none",
        [(peaks[1] - one_copy) / peaks[0]],
        MEMORY_REACH,
    )


def _opening(
    folder: Path, precision: Precision, plain: Path, many: Path, samples: dict[str, Any]
) -> Figure:
    seconds = [
        [_ask(folder, "open", {"artifact": str(artifact)})["seconds"] for artifact in (plain, many)]
        for _ in range(7)
    ]
    samples[f"{precision}, seconds to open"] = seconds
    ratios = [second / first for first, second in seconds]
    return _figure(f"{precision}: time to open with {MANY} prompts over none", ratios, OPEN_REACH)


def _exactness(folder: Path, models: Path, quick: bool, samples: dict[str, Any]) -> Figure:
    """Embed texts behind prompts by an fp32 artifact and by the PyTorch reference."""
    made = make_models(models)
    out = folder / "exact"
    artifact = export(
        Recipe(made.base, made.adapter, out, Fp32(), MAX_TOKENS, verify=False), stage
    ).artifact
    lengths = EXACT_TOKENS[:3] if quick else EXACT_TOKENS
    tokeniser = artifact.tokeniser()
    prompts = Prompts({str(tokens): _prompt(tokeniser, tokens) for tokens in lengths})
    add_prompts(out, prompts, overwrite=False, checkpoint=Checkpoint.open(made.base, made.adapter))
    encoder = open_encoder(out)
    reference = open_reference(
        made.base, made.adapter, framing=tokeniser.framing, prompts=encoder.prompts
    )
    heldout = read_corpus(sys.maxsize).heldout
    drawn = [text for pair in heldout for text in (pair.query, pair.document)]
    texts = drawn[: 100 if quick else EXACT_TEXTS]
    worst = {}
    for name in prompts.by_name:
        say(f"exactness: prompt of {name} tokens")
        pairs = zip(
            encoder.encode(texts, name).astype(np.float64),
            reference.encode(texts, name).astype(np.float64),
            strict=True,
        )
        worst[name] = min(float(a @ b / np.sqrt((a @ a) * (b @ b))) for a, b in pairs)
    samples["exactness: worst cosine by prompt"] = worst
    samples["exactness: texts"] = len(texts)
    value = min(worst.values())
    name = f"fp32: baked against whole prompts in PyTorch, {len(texts)} texts, worst cosine"
    return Figure(name, value, "", f">= {EXACT}", value >= EXACT)


def _ask(folder: Path, kind: str, ask: dict[str, Any]) -> dict[str, Any]:
    path = folder / "ask.json"
    path.write_text(json.dumps(ask))
    return json.loads(_python("prefix_worker.py", kind, str(path)))


def _python(script: str, *arguments: str) -> str:
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _draw(path: Path, samples: dict[str, Any]) -> None:
    panels = []
    batch, text = CHART_SHAPE
    for precision in REACH:
        seconds = samples[f"{precision}, seconds"]
        least = samples[f"{precision}, least seconds added"]
        none = statistics.median(seconds[Case(batch, text, "", "baked").name])
        lines: dict[str, dict[float, float]] = {
            "computed with every text": {},
            "baked": {},
            "bound: its multiply-adds at the fp32 peak": {},
        }
        for count in CHART_TOKENS:
            case = Case(batch, text, str(count), "baked").name
            if case not in seconds:
                continue
            whole = Case(batch, text, str(count), "whole").name
            points = (
                statistics.median(seconds[whole]),
                statistics.median(seconds[case]),
                none + least[case],
            )
            for line, point in zip(lines.values(), points, strict=True):
                line[count] = point / none
        panels.append(Panel(f"{precision}: a text of {text} tokens", lines))
    draw_lines(
        path,
        panels,
        "tokens of the prompt",
        "cost over that of no prompt",
        f"164 M parameters, ONNX Runtime, {hardware()}",
    )


if __name__ == "__main__":
    sys.exit(main())
