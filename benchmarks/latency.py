"""Our int8 artifact against its rivals on a CPU: throughput, and what it costs in parity.

    python benchmarks/latency.py          five rounds; 25 minutes, and as long again the first time
    python benchmarks/latency.py --quick  three rounds, three shapes, rivals of this environment

A random model of 164 M parameters beside its embedding, 2 cores, the same token ids for all. Each
measurement is a process of its own, all contenders in turn, each batching as its users would.
Before they are timed, each embeds the same texts alone and in one batch: how close to PyTorch in
fp32 and to itself is printed. Beside a ratio stands its bound: what it would be if ours took no
longer than its multiply-adds at the machine's int8 peak, or one reading of its weights.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import repository_root  # noqa: F401
from peaks import Peaks, least_int8_seconds
from record import Figure, record, say
from rivals import environments
from rivals.contender import Contender, ContenderError, Ready, make, run
from rivals.job import Job, Rows
from small_model import write_small_model

from anna_export.spec import EmbeddingSpec
from anna_export.text.framing import read_framing
from anna_export.text.tokeniser import Tokeniser
from anna_export.weights.checkpoint import Checkpoint
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

OURS = Contender("ours", "anna_int8", "int8")
REFERENCE = Contender("pytorch fp32", "pytorch_model", "float32", None, 5, 3.5)
TRACED = Contender("traced fp32", "traced_model", "fp32")  # traced int8 is made of it
RIVALS = (
    REFERENCE,
    Contender("pytorch bf16", "pytorch_model", "bfloat16", None, 1.4, 1.0),
    Contender("traced int8", "traced_model", "int8", None, 1.3, None, True),
    Contender("openvino static int8", "openvino_int8", "static", "openvino", 1.3, None, True),
    Contender("openvino int8 weights", "openvino_int8", "weights", "openvino", 1.3, None, True),
    Contender("llama.cpp Q8_0", "llama_cpp_q8", "q8_0", "llama_cpp", 1.3, None, True),
)


def main() -> int:
    """Run the benchmark and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="Three rounds, three shapes, no environments."
    )
    parser.add_argument("--json", type=Path, help="Results file (default: a dated one).")
    arguments = parser.parse_args()
    # children inherit it, and what they see as the machine is then two cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    environments.FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="latency-", dir=environments.FOLDER) as name:
        return _compare(Path(name).absolute(), arguments.quick, arguments.json)


def _compare(folder: Path, quick: bool, results: Path | None) -> int:
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
    for rival in RIVALS:
        if rival.name not in seconds:
            continue
        figures += _ratio_figures(rival, seconds[OURS.name], seconds[rival.name], least)
        if rival.parity:
            figures.append(_parity_figure(rival, checks[OURS.name], checks[rival.name]))
    samples = {
        "lengths": {shape: [len(row) for row in rows] for shape, rows in job.shapes.items()},
        "checks": checks,
        "median_seconds_of_each_round": seconds,
        "peaks": [asdict(found) for found in peaks],
        "least_int8_seconds": least,
        "environments": environments.requirements(),
        "busy_percent_before": busy_percent,
    }
    return record("latency", figures, samples, not_run, results)


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
    """Make every contender that can be made here."""
    ready = {}
    for contender in (OURS, REFERENCE, TRACED, *RIVALS[1:]):
        try:
            if contender.environment is not None and quick:
                raise ContenderError("--quick takes rivals of this environment only")
            ready[contender.name] = make(contender, job, folder, say)
        except ContenderError as error:
            _skip(contender.name, error, not_run)
    ready.pop(TRACED.name, None)
    return ready


def _check_all(
    ready: dict[str, Ready], folder: Path, not_run: list[dict[str, str]]
) -> dict[str, dict[str, Any]]:
    """Compare every contender's vectors, and print how close they are; drop one that fails."""
    checks: dict[str, dict[str, Any]] = {}
    reference = None
    for name in sorted(ready, key=lambda name: name != REFERENCE.name):
        try:
            checks[name] = ready[name].ask("check")
        except ContenderError as error:
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
    """Time every contender in every round; one that fails leaves with all it had."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in ready}
    for index in range(rounds):
        for name in list(seconds):
            say(f"round {index + 1} of {rounds}: {name}")
            try:
                answer = ready[name].ask("measure")
            except ContenderError as error:
                del seconds[name]
                _skip(name, error, not_run)
                continue
            for shape, found in answer["seconds"].items():
                seconds[name].setdefault(shape, []).append(statistics.median(found))
    return seconds


def _skip(name: str, error: ContenderError, not_run: list[dict[str, str]]) -> None:
    """Go on without a contender, if that is possible."""
    if name in (OURS.name, REFERENCE.name):
        sys.exit(f"expected {name} to run, found: {error}")
    say(f"not run: {name}: {error}")
    not_run.append({"name": name, "why": str(error)})


def _ratio_figures(
    rival: Contender,
    ours: dict[str, list[float]],
    theirs: dict[str, list[float]],
    least: dict[str, float],
) -> list[Figure]:
    ratios = {
        shape: [b / a for a, b in zip(ours[shape], theirs[shape], strict=True)] for shape in ours
    }
    bounds = {shape: statistics.median(theirs[shape]) / least[shape] for shape in ours}
    means = [statistics.geometric_mean(found) for found in zip(*ratios.values(), strict=True)]
    assert rival.mean_reach is not None
    figures = [
        _ratio_figure(
            f"{rival.name}: our throughput over its, geo. mean",
            means,
            rival.mean_reach,
            statistics.geometric_mean(bounds.values()),
        )
    ]
    if rival.every_reach is not None:
        figures += [
            _ratio_figure(f"{rival.name}: the same at {shape}", found, rival.every_reach, bound)
            for (shape, found), bound in zip(ratios.items(), bounds.values(), strict=True)
        ]
    return figures


def _ratio_figure(name: str, ratios: list[float], reach: float, bound: float) -> Figure:
    median = statistics.median(ratios)
    spread = (min(ratios), max(ratios))
    return Figure(name, median, "x", f">= {reach}", median >= reach, spread, bound)


def _batch_figure(check: dict[str, Any]) -> Figure:
    worst = check["worst_cosine_alone_to_batch"]
    return Figure(
        "ours: a text alone and in a batch, worst cosine",
        worst,
        "",
        f">= {MIN_COSINE_IN_BATCH}",
        worst >= MIN_COSINE_IN_BATCH,
    )


def _parity_figure(rival: Contender, ours: dict[str, Any], theirs: dict[str, Any]) -> Figure:
    loss = (1 - ours["worst_cosine"]) / (1 - theirs["worst_cosine"])
    return Figure(f"{rival.name}: our loss of cosine over its", loss, "x", "<= 1", loss <= 1)


def _parity(alone: np.ndarray, batch: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Compare vectors with the reference's, and those of texts alone with those in one batch."""
    cosines = np.concatenate([_cosines(alone, reference), _cosines(batch, reference)])
    return {
        "worst_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "worst_cosine_alone_to_batch": float(_cosines(alone, batch).min()),
    }


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.einsum("nd,nd->n", a, b) / norms


def _busy_percent() -> float:
    """Return how busy others keep the machine; threads that wait by spinning suffer most."""
    percent = psutil.cpu_percent(interval=3)
    if percent > MOST_BUSY_PERCENT:
        say(f"the machine is {percent:.0f} % busy with other work: these figures are no record")
    return percent


def _peaks() -> Peaks:
    say("measuring the machine's peaks")
    output = run([sys.executable, str(Path(__file__).with_name("peaks.py"))], {})
    return Peaks(**json.loads(output))


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _say_check(name: str, check: dict[str, Any]) -> None:
    kept = check["worst_cosine_alone_to_batch"] >= MIN_COSINE_IN_BATCH
    verdict = "" if kept else f" (BELOW {MIN_COSINE_IN_BATCH})"
    say(
        f"{name}: worst cosine {check['worst_cosine']:.6f} to {REFERENCE.name}, "
        f"{check['worst_cosine_alone_to_batch']:.6f} alone to batch{verdict}; "
        f"{check['served_bytes'] / 1e6:.0f} MB stored, {check['peak_bytes'] / 1e6:.0f} MB at work"
    )


def _say_milliseconds(seconds: dict[str, dict[str, list[float]]], least: dict[str, float]) -> None:
    say("\nmilliseconds, median of the rounds; int8 bound: no int8 program here takes less")
    say(f"{'':24}" + "".join(f"{shape:>10}" for shape in least))
    rows = {
        name: {shape: statistics.median(found) for shape, found in shapes.items()}
        for name, shapes in seconds.items()
    }
    for name, row in {**rows, "int8 bound": least}.items():
        say(f"{name:24}" + "".join(f"{row[shape] * 1e3:10.1f}" for shape in least))
    say("")


if __name__ == "__main__":
    sys.exit(main())
