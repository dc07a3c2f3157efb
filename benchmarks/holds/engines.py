"""TensorRT-RTX engines of a Mistral-7B's layers, built with no GPU: time, memory, what is fused.

python -m benchmarks.holds.engines [--layers N] [--json FILE] [--quick]

One layer at its true shape (hidden 4096, FFN 14336, 32/8 heads) in bf16 and FP8, then two: from
the two comes what a layer more takes, and a forecast for 32, which `anna-export plan` prints too.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from anna_export import quantise
from anna_export.quantise.footprint import engine_forecast
from anna_export.spec import Precision
from benchmarks.lib.big_model import mistral_v01, options, scratch_folder, write_base
from benchmarks.lib.record import Figure, Results, main, say
from benchmarks.lib.watched import run_checked

TOOL = Path(sys.executable).with_name("anna-export")
PRECISIONS = ("bf16", "fp8")
CAPABILITIES = ("8.9", "12.0")
FULL_LAYERS = 32
# what a forecast may be off by
TARGET = (0.67, 1.5)


def measure(arguments: Namespace) -> Results:
    """Build every engine."""
    figures: list[Figure] = []
    samples: dict[str, Any] = {}
    for precision in PRECISIONS:
        for layers in (1,) if arguments.quick else (1, 2):
            samples[f"{precision}, {layers} layers"] = _measure(
                precision, layers, arguments.folder, figures
            )
    return Results(figures, samples)


def _measure(
    precision: str, layers: int, folder: Path, figures: list[Figure]
) -> list[dict[str, Any]]:
    spec = mistral_v01(layers)
    forecast = engine_forecast(spec, quantise.load(Precision(precision)))
    builds = []
    with scratch_folder(folder, "engines") as scratch:
        base, artifact = scratch / "base", scratch / precision
        write_base(base, spec)
        bound = ["--max-loss", "1"] if precision == "fp8" else []
        run_checked(
            [
                *(str(TOOL), "--model", str(base), "--out", str(artifact), f"--{precision}"),
                *("--no-verify", "--max-tokens", "4096", "--json", *bound),
            ]
        )
        for capability in CAPABILITIES:
            say(f"{precision}, {layers} layers, {capability}")
            command = [str(TOOL), "build", str(artifact), "--compute-capability", capability]
            built = run_checked([*command, "--json"])
            (engine,) = json.loads(built.output)["engines"].values()
            builds.append(
                {
                    "capability": capability,
                    "seconds": built.seconds,
                    "peak_anonymous_bytes": built.peak_anon_bytes,
                    "forecast": {
                        "bytes": forecast.memory_bytes,
                        "seconds": forecast.seconds,
                    },
                    "engine": engine,
                }
            )
            title = f"{layers} layers of Mistral-7B, {precision}, compute capability {capability}"
            right = not engine["fusion_report"]
            figures += [
                Figure(f"{title}: fusion check passed", float(right), "", "== 1", right),
                Figure(
                    f"{title}: peak anonymous memory",
                    built.peak_anon_bytes / 2**30,
                    "GiB",
                    "printed",
                    built.peak_anon_bytes > 0,
                ),
                Figure(f"{title}: time", built.seconds, "s", "printed", built.seconds > 0),
                _ratio(f"{title}: plan's memory", forecast.memory_bytes / built.peak_anon_bytes),
                _ratio(f"{title}: plan's time", forecast.seconds / built.seconds),
            ]
    return builds


def _ratio(name: str, ratio: float) -> Figure:
    holds = TARGET[0] <= ratio <= TARGET[1]
    return Figure(f"{name} over what was found", ratio, "x", f"{TARGET[0]} to {TARGET[1]}", holds)


if __name__ == "__main__":
    sys.exit(main("engines", measure, quick="one layer alone", options=options))
