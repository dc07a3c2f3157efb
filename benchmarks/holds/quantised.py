"""Export a full-size Mistral-7B in fp8, int8 or int4: memory, time, and what `plan` had said.

    python -m benchmarks.holds.quantised --precision int8  the whole model: 25 GB, 20 minutes
    python -m benchmarks.holds.quantised --precision int8 --layers 4  a slice of it
    python -m benchmarks.holds.quantised --texts 12  calibrated on fewer texts, in less
                                                                time and memory than plan forecasts
    python -m benchmarks.holds.quantised --export-only  neither embedded with nor proved
    python -m benchmarks.holds.quantised --quick  two layers of each precision

The model is that of scale.py: the real v0.1 shape, random weights, a LoRA of rank 64. What random
weights lose says little about trained ones, so the loss is printed and not judged; all else is.
"""

import json
import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from anna_export.verify.texts import ordinary_texts
from benchmarks.lib.big_model import mistral_v01, options, scratch_folder, write_adapter, write_base
from benchmarks.lib.record import Figure, Results, main, say
from benchmarks.lib.watched import run_checked

GIB: Final = 1 << 30
TOOL = Path(sys.executable).with_name("anna-export")
PRECISIONS: Final = ("fp8", "int8", "int4")
# Not the proof's own texts: numbered ones that nothing else uses.
EMBEDDED_TEXTS: Final = 8


@dataclass(slots=True)
class Measurement:
    """What is measured of one precision.

    Args:
        precision: Of the artifact.
        folder: Where the model and its artifact are.
        plan: What `plan` forecast of it.
        results: What figures and what was not run go into.
        samples: This precision's.
    """

    precision: str
    folder: Path
    plan: dict[str, Any]
    results: Results
    samples: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """The artifact."""
        return self.folder / self.precision

    def at_most(self, name: str, size_bytes: float, gib: float) -> None:
        """Add a figure of memory."""
        value, holds = size_bytes / GIB, size_bytes <= gib * GIB
        name = f"{self.precision}: {name}"
        self.results.figures.append(Figure(name, value, "GiB", f"<= {gib:g}", holds))

    def forecast(self, name: str, forecast: float, measured: float, within: float) -> None:
        """Add a figure of how far off a forecast was."""
        off = forecast / measured - 1
        name = f"{self.precision}: plan's {name} over what was found, less 1"
        self.results.figures.append(Figure(name, off, "", f"+- {within}", abs(off) <= within))

    def skip(self, name: str, why: str) -> None:
        """Say what of this precision could not be run."""
        self.results.skip(f"{self.precision}: {name}", why)


def measure(arguments: Namespace) -> Results:
    """Write the model, then plan, export, embed with and prove every precision."""
    layers = 2 if arguments.quick else arguments.layers
    precisions = PRECISIONS if arguments.quick else arguments.precision or PRECISIONS
    results = Results(samples={"layers": layers}, name=f"quantised-{layers}-layers")
    with scratch_folder(arguments.folder, "quantised") as folder:
        spec = mistral_v01(layers)
        say(f"writing a model of {layers} layers, {spec.parameters / 1e9:.2f} G parameters")
        write_base(folder / "base", spec)
        write_adapter(folder / "adapter", spec)
        os.sync()
        adapter = ["--adapter", str(folder / "adapter")]
        for precision in precisions:
            model = ["--model", str(folder / "base"), *adapter]
            plans = json.loads(run_checked([str(TOOL), "plan", *model, "--json"]).output)["plans"]
            (plan,) = (plan for plan in plans if plan["precision"] == precision)
            measurement = Measurement(precision, folder, plan, results)
            _export(measurement, model, arguments.texts)
            if arguments.export_only:
                measurement.skip("embedding, its memory and the proof", "--export-only")
            else:
                _embed(measurement)
                _prove(measurement, ["--reference", str(folder / "base"), *adapter])
            shutil.rmtree(measurement.out)
            results.samples[precision] = measurement.samples
    return results


def _export(run: Measurement, model: list[str], texts: int | None) -> None:
    """Export it, calibrated on so many texts; None for the export's own."""
    say(f"{run.precision}: exporting")
    # random weights say nothing about the loss of trained ones
    command = [str(TOOL), *model, "--out", str(run.out), f"--{run.precision}", "--max-loss", "1"]
    if texts is not None:
        calibration = run.folder / "calibration.txt"
        calibration.write_text("\n".join(ordinary_texts(texts)) + "\n")
        command += ["--calibration", str(calibration)]
    exported = run_checked([*command, "--no-verify", "--json"])
    size_bytes = sum(path.stat().st_size for path in run.out.iterdir())
    run.at_most("export, peak anonymous memory", exported.peak_anon_bytes, 4)
    run.forecast("size", run.plan["artifact_bytes"], size_bytes, 0.02)
    if texts is None:
        run.forecast("export's memory", run.plan["export_bytes"], exported.peak_anon_bytes, 0.15)
        factor = run.plan["export_seconds"] / exported.seconds
        name = f"{run.precision}: plan's time over what was found"
        holds = 1 / 1.5 <= factor <= 1.5
        run.results.figures.append(Figure(name, factor, "x", "1/1.5 to 1.5", holds))
    else:
        why = f"calibrated on {texts} texts; forecast are the default's time and memory"
        run.skip("plan's time and export's memory", why)
    run.samples |= {"plan": run.plan, "size_bytes": size_bytes, "export_seconds": exported.seconds}
    run.samples["exported"] = json.loads(exported.output)


def _embed(run: Measurement) -> None:
    """Load the artifact and embed with it, if its fp32 fallback graph fits in memory."""
    if not run.plan["fits_serve"]:
        why = "its fp32 fallback graph does not fit in this memory"
        run.skip("loaded and embedding", why)
        return
    texts, vectors = run.folder / "texts.txt", run.folder / "vectors.npy"
    texts.write_text("\n".join(ordinary_texts(EMBEDDED_TEXTS)) + "\n")
    embedded = run_checked([str(TOOL), "embed", str(run.out), str(texts), "--out", str(vectors)])
    vectors.unlink()
    peak = embedded.peak_anon_bytes
    run.at_most("loaded and embedding, peak anonymous memory", peak, 24)
    run.forecast("embedding's memory", run.plan["serve_bytes"], peak, 0.15)
    run.samples["embed_seconds"] = embedded.seconds


def _prove(run: Measurement, reference: list[str]) -> None:
    say(f"{run.precision}: proving")
    proof = run_checked([str(TOOL), "verify", str(run.out), *reference, "--json"])
    parity = json.loads(proof.output)
    loss = 1 - parity["mean_cosine"]
    name = f"{run.precision}: mean loss, random weights"
    run.results.figures.append(Figure(name, loss, "", "finite", loss < 1))
    worst = parity["batch1_worst_cosine"]
    if worst is not None:
        name = f"{run.precision}: a text alone and in a batch, worst cosine"
        run.results.figures.append(Figure(name, worst, "", ">= 0.9999", worst >= 0.9999))
    run.samples |= {
        "proof": parity,
        "proof_seconds": proof.seconds,
        "proof_peak_anon_bytes": proof.peak_anon_bytes,
    }


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--precision", choices=PRECISIONS, action="append", help="What to export (default: each)."
    )
    parser.add_argument("--texts", type=int, help="Calibration texts (default: the export's own).")
    parser.add_argument(
        "--export-only", action="store_true", help="Neither embed with the artifact nor prove it."
    )
    options(parser)


if __name__ == "__main__":
    sys.exit(main("quantised", measure, quick="Two layers.", options=_options))
