"""What a baked few-shot prompt costs: against no prompt, and against computing it with every text.

    python -m benchmarks.holds.prefix  five rounds; about twenty minutes
    python -m benchmarks.holds.prefix --quick  two rounds, three shapes, shorter prompts

A random model of 164 M parameters beside its embedding, ONNX Runtime on 2 cores, fp32 and int8.
Each round is a process of its own, all cases in turn in one session. Costs are of the texts as
`encode` batches them, tokenising left out. Beside a ratio stands its bound: what it would be if
the prompt added its multiply-adds at the machine's fp32 peak, and nothing else. What attending to
it takes, in fp32 in either precision, is held against the bare MatMul, Softmax, MatMul. Memory is
that of the same texts by the artifact without prompts and by the one with them. Exactness is that
of the demo's model, against PyTorch computing the whole prompt.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

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
from benchmarks.lib.charts import Panel, draw_lines
from benchmarks.lib.peaks import Peaks
from benchmarks.lib.record import Figure, Results, main, models_option, python_module, say
from benchmarks.lib.small_model import write_small_model
from demo.corpus import read_corpus
from demo.models import make_models

CORES: Final = 2
MAX_TOKENS: Final = 2400
PROMPT: Final = 512
SHAPES: Final = ((1, 16), (1, 64), (1, 256), (32, 16), (32, 64), (32, 256))
QUICK_SHAPES: Final = ((1, 16), (1, 64), (8, 16))
CHART_TOKENS: Final = (16, 32, 64, 128, 256, PROMPT, 1024, 2000)
CHART_SHAPE: Final = (1, 16)
TARGET: Final = {Precision.FP32: 1.2, Precision.INT8: 1.8}
BARE_TARGET: Final = 1.5
WHOLE_TARGET: Final = 10.0
MEMORY_TARGET: Final = 1.05
OPEN_TARGET: Final = 1.1
PROMPT_COUNT: Final = 50
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


def measure(arguments: Namespace) -> Results:
    """Run the benchmark."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    figures: list[Figure] = []
    samples: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="anna-prefix-") as name:
        folder = Path(name)
        figures.append(_exactness(folder, arguments.models, arguments.quick, samples))
        say("writing the model")
        write_small_model(folder / "base")
        spec = Checkpoint.open(folder / "base").spec
        peaks = Peaks(**json.loads(_python("lib.peaks")))
        for precision in TARGET:
            figures += _of_precision(folder, precision, spec, peaks, arguments.quick, samples)
    return Results(figures, samples, chart=partial(_draw, samples=samples))


@dataclass(frozen=True, slots=True)
class Artifacts:
    """One precision's artifacts of the model: without prompts, with some, and with PROMPT_COUNT."""

    plain: Path
    prompted: Path
    crowded: Path


def _of_precision(
    folder: Path,
    precision: Precision,
    spec: EmbeddingSpec,
    peaks: Peaks,
    quick: bool,
    samples: dict[str, Any],
) -> list[Figure]:
    say(f"exporting {precision}")
    tokens = [count for count in CHART_TOKENS if not quick or count <= PROMPT]
    artifacts = _export(folder, precision, tokens)
    shapes = QUICK_SHAPES if quick else SHAPES
    cases = _cases(shapes, tokens)
    seconds = _time(folder, precision, artifacts.prompted, cases, 2 if quick else 5)
    samples[f"{precision}, seconds"] = seconds
    bounds = {case.name: _added_seconds(spec, peaks, case) for case in cases if case.way == "baked"}
    samples[f"{precision}, least seconds added"] = bounds
    return [
        *(
            figure
            for batch, text in shapes
            for figure in _shape_figures(precision, batch, text, seconds, bounds)
        ),
        _memory(folder, precision, artifacts.plain, artifacts.prompted, samples),
        _opening(folder, precision, artifacts.plain, artifacts.crowded, samples),
    ]


def _export(folder: Path, precision: Precision, tokens: Sequence[int]) -> Artifacts:
    """Export the model; add prompts of so many tokens to one copy, PROMPT_COUNT to another."""
    plain, prompted, crowded = (
        folder / f"{precision}-{prompts}" for prompts in ("no", "some", "50")
    )
    # random weights lose more than trained ones
    loss = None if precision is Precision.FP32 else 1.0
    base = folder / "base"
    recipe = Recipe(base, None, plain, storage(precision, max_loss=loss), MAX_TOKENS, verify=False)
    export(recipe, stage)
    for copy in (prompted, crowded):
        shutil.copytree(plain, copy, copy_function=os.link)
    tokeniser = open_artifact(plain).tokeniser()
    prompts = {str(count): _prompt(tokeniser, count) for count in tokens}
    add_prompts(prompted, Prompts(prompts), overwrite=False)
    short = {
        f"task{index}": Prompt(f"Task {index}. {long_text(40)}: ") for index in range(PROMPT_COUNT)
    }
    add_prompts(crowded, Prompts(short), overwrite=False)
    return Artifacts(plain, prompted, crowded)


def _time(
    folder: Path, precision: Precision, artifact: Path, cases: Sequence[Case], rounds: int
) -> dict[str, list[float]]:
    """Return each case's seconds, one a round."""
    seconds: dict[str, list[float]] = {}
    question = {"artifact": str(artifact), "cases": [case.to_json() for case in cases]}
    for index in range(rounds):
        say(f"{precision}: round {index + 1} of {rounds}")
        for case, value in _ask(folder, "times", question).items():
            seconds.setdefault(case, []).append(value)
    return seconds


def _shape_figures(
    precision: Precision,
    batch: int,
    text: int,
    seconds: dict[str, list[float]],
    bounds: dict[str, float],
) -> list[Figure]:
    def of(prompt: str, way: str) -> list[float]:
        return seconds[Case(batch, text, prompt, way).name]

    none, baked, bare = of("", "baked"), of(str(PROMPT), "baked"), of(str(PROMPT), "bare")
    label = f"{precision}, {batch} x {text} tokens"
    least = bounds[Case(batch, text, str(PROMPT), "baked").name]
    figures = [
        _figure(
            f"{label}: with {PROMPT} tokens over none",
            [a / b for a, b in zip(baked, none, strict=True)],
            TARGET[precision],
            1 + least / statistics.median(none),
        )
    ]
    if precision is Precision.INT8:  # fp32's products take so long that their noise is larger
        added = [(a - b) / c for a, b, c in zip(baked, none, bare, strict=True)]
        figures.append(_figure(f"{label}: time added over bare products", added, BARE_TARGET))
    if text == CHART_SHAPE[1]:
        ratios = [a / b for a, b in zip(of(str(PROMPT), "whole"), baked, strict=True)]
        median, spread = statistics.median(ratios), (min(ratios), max(ratios))
        name, target = f"{label}: whole prompt over baked", f">= {WHOLE_TARGET:g}"
        figures.append(Figure(name, median, "x", target, median >= WHOLE_TARGET, spread))
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


def _figure(name: str, ratios: list[float], target: float, bound: float | None = None) -> Figure:
    median = statistics.median(ratios)
    spread = (min(ratios), max(ratios))
    return Figure(name, median, "x", f"<= {target:g}", median <= target, spread, bound)


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
        MEMORY_TARGET,
    )


def _opening(
    folder: Path, precision: Precision, plain: Path, crowded: Path, samples: dict[str, Any]
) -> Figure:
    seconds = [
        [
            _ask(folder, "open", {"artifact": str(artifact)})["seconds"]
            for artifact in (plain, crowded)
        ]
        for _ in range(7)
    ]
    samples[f"{precision}, seconds to open"] = seconds
    ratios = [second / first for first, second in seconds]
    return _figure(
        f"{precision}: time to open with {PROMPT_COUNT} prompts over none", ratios, OPEN_TARGET
    )


def _exactness(folder: Path, models: Path, quick: bool, samples: dict[str, Any]) -> Figure:
    """Embed texts behind prompts by an fp32 artifact and by the PyTorch reference."""
    demo = make_models(models)
    out = folder / "exact"
    artifact = export(
        Recipe(demo.base, demo.adapter, out, Fp32(), MAX_TOKENS, verify=False), stage
    ).artifact
    lengths = EXACT_TOKENS[:3] if quick else EXACT_TOKENS
    tokeniser = artifact.tokeniser()
    prompts = Prompts({str(tokens): _prompt(tokeniser, tokens) for tokens in lengths})
    add_prompts(out, prompts, overwrite=False, checkpoint=Checkpoint.open(demo.base, demo.adapter))
    encoder = open_encoder(out)
    reference = open_reference(
        demo.base, demo.adapter, framing=tokeniser.framing, prompts=encoder.prompts
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
    return json.loads(_python("holds._prefix_worker", kind, str(path)))


def _python(module: str, *arguments: str) -> str:
    command = python_module(module, *arguments)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _draw(path: Path, samples: dict[str, Any]) -> None:
    panels = []
    batch, text = CHART_SHAPE
    for precision in TARGET:
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
            uncached = Case(batch, text, str(count), "whole").name
            points = (
                statistics.median(seconds[uncached]),
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
    sys.exit(main("prefix", measure, quick="Two rounds, three shapes.", options=models_option))
