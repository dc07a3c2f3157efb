"""Export a full-size Mistral-7B in fp8, int8 or int4: memory, time, and what `plan` had said.

    python benchmarks/quantised.py --precision int8             the whole model: 25 GB, 20 minutes
    python benchmarks/quantised.py --precision int8 --layers 4  a slice of it
    python benchmarks/quantised.py --texts 12                   calibrated on fewer texts, in less
                                                                time and memory than plan forecasts
    python benchmarks/quantised.py --export-only                neither embedded with nor proved
    python benchmarks/quantised.py --quick                      two layers of each precision

The model is that of scale.py: the real v0.1 shape, random weights, a LoRA of rank 64. What random
weights lose says little about trained ones, so the loss is printed and not judged; all else is.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from big_model import mistral_v01, parse_arguments, write_adapter, write_base
from record import Figure, record, say
from watched import run_checked

from anna_export.verify.texts import ordinary_texts

GIB: Final = 1 << 30
TOOL = Path(sys.executable).with_name("anna-export")
PRECISIONS: Final = ("fp8", "int8", "int4")
# Not the proof's own texts: numbered ones that nothing else uses.
EMBEDDED_TEXTS: Final = 8


def main() -> int:
    """Run the benchmark and return its exit code."""
    arguments = _arguments()
    layers = 2 if arguments.quick else arguments.layers
    precisions = PRECISIONS if arguments.quick else arguments.precision or PRECISIONS
    figures: list[Figure] = []
    samples: dict[str, Any] = {"layers": layers}
    not_run: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="anna-quantised-", dir=arguments.folder) as name:
        folder = Path(name)
        spec = mistral_v01(layers)
        say(f"writing a model of {layers} layers, {spec.parameters / 1e9:.2f} G parameters")
        write_base(folder / "base", spec)
        write_adapter(folder / "adapter", spec)
        os.sync()
        for precision in precisions:
            samples[precision] = _measure(folder, precision, arguments, figures, not_run)
    return record(f"quantised-{layers}-layers", figures, samples, not_run, arguments.json)


def _measure(
    folder: Path,
    precision: str,
    arguments: argparse.Namespace,
    figures: list[Figure],
    not_run: list[dict[str, str]],
) -> dict[str, Any]:
    source = ["--model", str(folder / "base"), "--adapter", str(folder / "adapter")]
    out, texts = folder / precision, arguments.texts
    plans = json.loads(run_checked([str(TOOL), "plan", *source, "--json"]).output)["plans"]
    (plan,) = (one for one in plans if one["precision"] == precision)
    say(f"{precision}: exporting")
    # random weights say nothing about the loss of trained ones
    command = [str(TOOL), *source, "--out", str(out), f"--{precision}", "--max-loss", "1"]
    if texts is not None:
        few = folder / "calibration.txt"
        few.write_text("\n".join(ordinary_texts(texts)) + "\n")
        command += ["--calibration", str(few)]
    exported = run_checked([*command, "--no-verify", "--json"])
    size_bytes = sum(path.stat().st_size for path in out.iterdir())
    peak = exported.peak_anon_bytes
    figures += [
        Figure(
            f"{precision}: export, peak anonymous memory",
            peak / GIB,
            "GiB",
            "<= 4",
            peak <= 4 * GIB,
        ),
        _forecast(precision, "size", plan["artifact_bytes"], size_bytes, 0.02),
    ]
    if texts is None:
        figures += [
            _forecast(precision, "export's memory", plan["export_bytes"], peak, 0.15),
            _factor(precision, plan["export_seconds"], exported.seconds),
        ]
    else:
        why = f"calibrated on {texts} texts; forecast are the default's time and memory"
        not_run.append({"name": f"{precision}: plan's time and export's memory", "why": why})
    samples = {"plan": plan, "size_bytes": size_bytes, "export_seconds": exported.seconds}
    samples["exported"] = json.loads(exported.output)
    if arguments.export_only:
        why = "--export-only"
        not_run.append({"name": f"{precision}: embedding, its memory and the proof", "why": why})
        shutil.rmtree(out)
        return samples
    if plan["fits_serve"]:
        source_file, vectors = folder / "texts.txt", folder / "vectors.npy"
        source_file.write_text("\n".join(ordinary_texts(EMBEDDED_TEXTS)) + "\n")
        embed = [str(TOOL), "embed", str(out), str(source_file), "--out", str(vectors)]
        embedded = run_checked(embed)
        vectors.unlink()
        found = embedded.peak_anon_bytes
        figures += [
            Figure(
                f"{precision}: loaded and embedding, peak anonymous memory",
                found / GIB,
                "GiB",
                "<= 24",
                found <= 24 * GIB,
            ),
            _forecast(precision, "embedding's memory", plan["serve_bytes"], found, 0.15),
        ]
        samples["embed_seconds"] = embedded.seconds
    else:
        why = "its fp32 fallback graph does not fit in this memory"
        not_run.append({"name": f"{precision}: loaded and embedding", "why": why})
    say(f"{precision}: proving")
    verify = [str(TOOL), "verify", str(out), "--reference", *source[1:], "--json"]
    proof = run_checked(verify)
    parity = json.loads(proof.output)
    loss = 1 - parity["mean_cosine"]
    figures.append(Figure(f"{precision}: mean loss, random weights", loss, "", "finite", loss < 1))
    if parity["batch1_worst_cosine"] is not None:
        alone = parity["batch1_worst_cosine"]
        figures.append(
            Figure(
                f"{precision}: a text alone and in a batch, worst cosine",
                alone,
                "",
                ">= 0.9999",
                alone >= 0.9999,
            )
        )
    shutil.rmtree(out)
    return samples | {
        "proof": parity,
        "proof_seconds": proof.seconds,
        "proof_peak_anon_bytes": proof.peak_anon_bytes,
    }


def _forecast(precision: str, what: str, said: float, found: float, within: float) -> Figure:
    off = said / found - 1
    name = f"{precision}: plan's {what} over what was found, less 1"
    return Figure(name, off, "", f"+- {within}", abs(off) <= within)


def _factor(precision: str, said: float, found: float) -> Figure:
    factor = said / found
    name = f"{precision}: plan's time over what was found"
    return Figure(name, factor, "x", "1/1.5 to 1.5", 1 / 1.5 <= factor <= 1.5)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--precision", choices=PRECISIONS, action="append", help="What to export (default: each)."
    )
    parser.add_argument("--texts", type=int, help="Calibration texts (default: the export's own).")
    parser.add_argument(
        "--export-only", action="store_true", help="Neither embed with the artifact nor prove it."
    )
    parser.add_argument("--quick", action="store_true", help="Two layers.")
    return parse_arguments(parser)


if __name__ == "__main__":
    sys.exit(main())
