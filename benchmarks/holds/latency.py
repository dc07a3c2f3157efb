"""Our int8 artifact against its baselines on a CPU: throughput, and what it costs in parity.

    python -m benchmarks.holds.latency  five rounds; 25 minutes, and as long again the first time
    python -m benchmarks.holds.latency --quick  three rounds and shapes, this environment alone

A random model of 164 M parameters beside its embedding, 2 cores, the same token ids for all. Each
measurement is a process of its own, all baselines in turn, each batching as its users would.
Before they are timed, each embeds the same texts alone and in one batch: how close to PyTorch in
fp32 and to itself is printed. Beside a ratio stands its bound: what it would be if ours took no
longer than its multiply-adds at the machine's int8 peak, or one reading of its weights.
"""

import json
import os
import random
import statistics
import sys
import tempfile
from argparse import Namespace
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from anna_export.cosine import cosines
from anna_export.spec import EmbeddingSpec
from anna_export.text.framing import read_framing
from anna_export.text.tokeniser import Tokeniser
from anna_export.weights.checkpoint import Checkpoint
from benchmarks.baselines import environments
from benchmarks.baselines.baseline import Baseline, BaselineError, Ready, make, run
from benchmarks.baselines.job import Job, Rows
from benchmarks.lib.peaks import Peaks, least_int8_seconds
from benchmarks.lib.record import Figure, Results, main, python_module, say
from benchmarks.lib.small_model import write_small_model
from demo.corpus import collect_pairs, source_files, source_folders

CORES = 2
SHAPES = ((1, 16), (1, 64), (1, 128), (8, 16), (8, 64), (8, 128), (8, 256))
QUICK_SHAPES = ((1, 16), (1, 128), (8, 64))
MIX = "mix"
# rows of all but the shapes above: documents among this many pairs, cut at MIX_TOKENS
PAIRS = 2000
MIX_TEXTS, MIX_TOKENS = 128, 256
PARITY_TEXTS = 24
CALIBRATION_TEXTS = 64
MIN_COSINE_IN_BATCH = 0.9999
MOST_BUSY_PERCENT = 10

OURS = Baseline("ours", "anna_int8", "int8")
REFERENCE = Baseline("pytorch fp32", "pytorch_model", "float32", None, 5, 3.5)
TRACED = Baseline("traced fp32", "traced_model", "fp32")  # traced int8 is made of it
BASELINES = (
    REFERENCE,
    Baseline("pytorch bf16", "pytorch_model", "bfloat16", None, 1.4, 1.0),
    Baseline("traced int8", "traced_model", "int8", None, 1.3, None, True),
    Baseline("openvino static int8", "openvino_int8", "static", "openvino", 1.3, None, True),
    Baseline("openvino int8 weights", "openvino_int8", "weights", "openvino", 1.3, None, True),
    Baseline("llama.cpp Q8_0", "llama_cpp_q8", "q8_0", "llama_cpp", 1.3, None, True),
)


def measure(arguments: Namespace) -> Results:
    """Make every model, compare their vectors, and time them in rounds."""
    # children inherit it, and what they see as the machine is then two cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    environments.FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="latency-", dir=environments.FOLDER) as name:
        return _compare(Path(name).absolute(), arguments.quick)


def _compare(folder: Path, quick: bool) -> Results:
    say("writing the model")
    write_small_model(folder / "base")
    spec = Checkpoint.open(folder / "base").spec
    job = _draw_job(folder, spec, quick)
    not_run: list[dict[str, str]] = []
    ready = _make_all(job, folder, quick, not_run)
    checks = _check_all(ready, folder, not_run)
    busy_percent = _busy_percent()
    peaks = [_peaks()]
    seconds = _measure_all(ready, 3 if quick else 5, not_run)
    peaks.append(_peaks())
    best = Peaks(*(max(values) for values in zip(*map(astuple, peaks), strict=True)))
    least = {
        shape: least_int8_seconds(spec, [len(row) for row in rows], best)
        for shape, rows in job.shapes.items()
    }
    _say_milliseconds(seconds, least)
    figures = [_batch_figure(checks[OURS.name])]
    for baseline in BASELINES:
        if baseline.name not in seconds:
            continue
        figures += _ratio_figures(baseline, seconds[OURS.name], seconds[baseline.name], least)
        if baseline.parity:
            figures.append(_parity_figure(baseline, checks[OURS.name], checks[baseline.name]))
    samples = {
        "lengths": {shape: [len(row) for row in rows] for shape, rows in job.shapes.items()},
        "checks": checks,
        "median_seconds_of_each_round": seconds,
        "peaks": [asdict(measured) for measured in peaks],
        "least_int8_seconds": least,
        "environments": environments.requirements(),
        "busy_percent_before": busy_percent,
    }
    return Results(figures, samples, not_run)


def _draw_job(folder: Path, spec: EmbeddingSpec, quick: bool) -> Job:
    """Draw every row of ids: docstrings, except where a shape asks for one length."""
    base = folder / "base"
    tokeniser = Tokeniser.open(base, read_framing(base, spec, MIX_TOKENS))
    pairs = collect_pairs(source_files(source_folders()), PAIRS)
    count = MIX_TEXTS + PARITY_TEXTS + CALIBRATION_TEXTS
    drawn = random.Random(0).sample([pair.document for pair in pairs], count)
    rows = tokeniser.ids(drawn)
    generator = np.random.default_rng(0)
    shapes: dict[str, Rows] = {
        f"{batch}x{length}": generator.integers(3, spec.vocab_size, (batch, length)).tolist()
        for batch, length in (QUICK_SHAPES if quick else SHAPES)
    }
    if not quick:
        shapes[MIX] = rows[:MIX_TEXTS]
    return Job(
        base=base,
        traced=folder / TRACED.name,
        served=folder,
        variant="",
        threads=CORES,
        min_seconds=0.5,
        shapes=shapes,
        parity=rows[MIX_TEXTS : MIX_TEXTS + PARITY_TEXTS],
        calibration=rows[MIX_TEXTS + PARITY_TEXTS :],
    )


def _make_all(
    job: Job, folder: Path, quick: bool, not_run: list[dict[str, str]]
) -> dict[str, Ready]:
    """Make every baseline that can be made here."""
    ready = {}
    for baseline in (OURS, REFERENCE, TRACED, *BASELINES[1:]):
        try:
            if baseline.environment is not None and quick:
                raise BaselineError("--quick takes baselines of this environment only")
            ready[baseline.name] = make(baseline, job, folder, say)
        except BaselineError as error:
            _skip(baseline.name, error, not_run)
    ready.pop(TRACED.name, None)
    return ready


def _check_all(
    ready: dict[str, Ready], folder: Path, not_run: list[dict[str, str]]
) -> dict[str, dict[str, Any]]:
    """Compare every baseline's vectors, and print how close they are; drop one that fails."""
    checks: dict[str, dict[str, Any]] = {}
    reference = None
    for name in sorted(ready, key=lambda name: name != REFERENCE.name):
        try:
            checks[name] = ready[name].ask("check")
        except BaselineError as error:
            del ready[name]
            _skip(name, error, not_run)
            continue
        with np.load(ready[name].job.with_suffix(".check.npz")) as vectors:
            if reference is None:  # it comes first, and nothing goes on without it
                reference = vectors["alone"]
            checks[name] |= _parity(vectors["alone"], vectors["batch"], reference)
        checks[name]["served_bytes"] = _folder_bytes(folder / name)
        _say_check(name, checks[name])
    return checks


def _measure_all(
    ready: dict[str, Ready], rounds: int, not_run: list[dict[str, str]]
) -> dict[str, dict[str, list[float]]]:
    """Time every baseline in every round; one that fails leaves with all it had."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in ready}
    for index in range(rounds):
        for name in list(seconds):
            say(f"round {index + 1} of {rounds}: {name}")
            try:
                answer = ready[name].ask("measure")
            except BaselineError as error:
                del seconds[name]
                _skip(name, error, not_run)
                continue
            for shape, values in answer["seconds"].items():
                seconds[name].setdefault(shape, []).append(statistics.median(values))
    return seconds


def _skip(name: str, error: BaselineError, not_run: list[dict[str, str]]) -> None:
    """Go on without a baseline, if that is possible."""
    if name in (OURS.name, REFERENCE.name):
        sys.exit(f"expected {name} to run, found: {error}")
    say(f"not run: {name}: {error}")
    not_run.append({"name": name, "why": str(error)})


def _ratio_figures(
    baseline: Baseline,
    ours: dict[str, list[float]],
    theirs: dict[str, list[float]],
    least: dict[str, float],
) -> list[Figure]:
    ratios = {
        shape: [b / a for a, b in zip(ours[shape], theirs[shape], strict=True)] for shape in ours
    }
    bounds = {shape: statistics.median(theirs[shape]) / least[shape] for shape in ours}
    means = [statistics.geometric_mean(values) for values in zip(*ratios.values(), strict=True)]
    assert baseline.mean_target is not None
    figures = [
        _ratio_figure(
            f"{baseline.name}: our throughput over its, geo. mean",
            means,
            baseline.mean_target,
            statistics.geometric_mean(bounds.values()),
        )
    ]
    if baseline.every_target is not None:
        figures += [
            _ratio_figure(
                f"{baseline.name}: the same at {shape}", values, baseline.every_target, bound
            )
            for (shape, values), bound in zip(ratios.items(), bounds.values(), strict=True)
        ]
    return figures


def _ratio_figure(name: str, ratios: list[float], target: float, bound: float) -> Figure:
    median = statistics.median(ratios)
    spread = (min(ratios), max(ratios))
    return Figure(name, median, "x", f">= {target}", median >= target, spread, bound)


def _batch_figure(check: dict[str, Any]) -> Figure:
    worst = check["worst_cosine_alone_to_batch"]
    return Figure(
        "ours: a text alone and in a batch, worst cosine",
        worst,
        "",
        f">= {MIN_COSINE_IN_BATCH}",
        worst >= MIN_COSINE_IN_BATCH,
    )


def _parity_figure(baseline: Baseline, ours: dict[str, Any], theirs: dict[str, Any]) -> Figure:
    loss = (1 - ours["worst_cosine"]) / (1 - theirs["worst_cosine"])
    return Figure(f"{baseline.name}: our loss of cosine over its", loss, "x", "<= 1", loss <= 1)


def _parity(alone: np.ndarray, batch: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Compare vectors with the reference's, and those of texts alone with those in one batch."""
    both = np.concatenate([cosines(alone, reference), cosines(batch, reference)])
    return {
        "worst_cosine": float(both.min()),
        "mean_cosine": float(both.mean()),
        "worst_cosine_alone_to_batch": float(cosines(alone, batch).min()),
    }


def _busy_percent() -> float:
    """Return how busy others keep the machine; threads that wait by spinning suffer most."""
    percent = psutil.cpu_percent(interval=3)
    if percent > MOST_BUSY_PERCENT:
        say(f"the machine is {percent:.0f} % busy with other work: these figures are no record")
    return percent


def _peaks() -> Peaks:
    say("measuring the machine's peaks")
    output = run(python_module("lib.peaks"), {})
    return Peaks(**json.loads(output))


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _say_check(name: str, check: dict[str, Any]) -> None:
    alike = check["worst_cosine_alone_to_batch"] >= MIN_COSINE_IN_BATCH
    verdict = "" if alike else f" (BELOW {MIN_COSINE_IN_BATCH})"
    say(
        f"{name}: worst cosine {check['worst_cosine']:.6f} to {REFERENCE.name}, "
        f"{check['worst_cosine_alone_to_batch']:.6f} alone to batch{verdict}; "
        f"{check['served_bytes'] / 1e6:.0f} MB stored, {check['peak_bytes'] / 1e6:.0f} MB at work"
    )


def _say_milliseconds(seconds: dict[str, dict[str, list[float]]], least: dict[str, float]) -> None:
    say("\nmilliseconds, median of the rounds; int8 bound: no int8 program here takes less")
    say(f"{'':24}" + "".join(f"{shape:>10}" for shape in least))
    rows = {
        name: {shape: statistics.median(medians) for shape, medians in shapes.items()}
        for name, shapes in seconds.items()
    }
    for name, row in {**rows, "int8 bound": least}.items():
        say(f"{name:24}" + "".join(f"{row[shape] * 1e3:10.1f}" for shape in least))
    say("")


if __name__ == "__main__":
    sys.exit(main("latency", measure, quick="Three rounds, three shapes, no environments."))
