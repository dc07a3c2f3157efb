"""Export a full-size Mistral-7B: memory, time against copying the same bytes, and correctness.

    python benchmarks/scale.py                    the whole model: 32 GB of disk, 20 minutes
    python benchmarks/scale.py --precision fp16   the same, exported as fp16
    python benchmarks/scale.py --layers 4         a slice of it
    python benchmarks/scale.py --quick            two layers, one round

The model has the real v0.1 shape and random weights, bf16 in shards as hubs hold it, under a LoRA
of rank 64 over all linear layers. Each round copies and exports, each from a cold page cache.

What storing merged weights in 16 bits costs depends on the model; random weights amplify it from
layer to layer. So the proof's cosine has its bound beside it: the exact sums, rounded once.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import onnx_ir as ir
import torch
from big_model import ALPHA, RANK, mistral_v01, parse_arguments, write_adapter, write_base
from record import Figure, record, say
from safetensors import safe_open
from watched import Run, run_watched

from anna_export import quantise
from anna_export.encoder import Encoder
from anna_export.files.disk import disk_free_bytes
from anna_export.quantise.scheme import Thresholds
from anna_export.reference.streamed import open_streamed, open_streamed_reference
from anna_export.spec import Precision
from anna_export.text.framing import read_framing
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.prove import STREAMED_TEXTS
from anna_export.verify.vectors import compare_weights
from anna_export.weights.checkpoint import TORCH_DTYPES, Checkpoint

GIB = 1 << 30
ADDRESS_SPACE_BYTES = 3 * GIB
TOOL = Path(sys.executable).with_name("anna-export")


def main() -> int:
    """Run the benchmark and return its exit code."""
    arguments = _arguments()
    layers = 2 if arguments.quick else arguments.layers
    rounds = 1 if arguments.quick else arguments.rounds
    spec = mistral_v01(layers)
    weights_bytes = spec.parameters * 2
    adapter_bytes = layers * RANK * 4 * (2 * 4096 + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    needed = 2 * weights_bytes + adapter_bytes + 2 * GIB
    free = disk_free_bytes(arguments.folder)
    if free < needed:
        print(
            f"expected {needed / 1e9:.0f} GB free under {arguments.folder}, found "
            f"{free / 1e9:.0f} GB; use --folder or --layers",
            file=sys.stderr,
        )
        return 2
    precision = Precision(arguments.precision)
    with tempfile.TemporaryDirectory(prefix="anna-scale-", dir=arguments.folder) as name:
        return _measure(Path(name), precision, layers, rounds, arguments.json)


def _measure(
    folder: Path, precision: Precision, layers: int, rounds: int, results: Path | None
) -> int:
    spec = mistral_v01(layers)
    base, adapter, out = folder / "base", folder / "adapter", folder / "artifact"
    say(f"writing a model of {layers} layers, {spec.parameters / 1e9:.2f} G parameters")
    weights_bytes = write_base(base, spec)
    write_adapter(adapter, spec)
    os.sync()
    command = [str(TOOL), "--model", str(base), "--adapter", str(adapter), "--out", str(out)]
    command += [f"--{precision}", "--json"]
    exports, copies = [], []
    for index in range(rounds):
        _drop_caches(folder)
        copies.append(_copy(base, folder / "copy"))
        _require(copies[-1])
        shutil.rmtree(folder / "copy")
        _drop_caches(folder)
        exports.append(run_watched([*command, "--no-verify"]))
        _require(exports[-1])
        written = sum(path.stat().st_size for path in out.glob("model*"))
        if index < rounds - 1:
            shutil.rmtree(out)
        else:
            out.rename(folder / "kept")
        say(f"round {index + 1}: export {exports[-1].seconds:.1f} s, cp {copies[-1].seconds:.1f} s")
    worst_ulp = _spot_check(base, adapter, folder / "kept", layers, precision)
    say("proving it layer by layer against base and adapter, under 3 GiB too")
    prove = [str(TOOL), "verify", str(folder / "kept"), "--reference", str(base)]
    prove += ["--adapter", str(adapter), "--json"]
    proof = run_watched(prove, address_space_bytes=ADDRESS_SPACE_BYTES)
    shutil.rmtree(folder / "kept")
    say("the same with exact sums, rounded once")
    bound = _one_rounding(base, adapter, precision)
    say("exporting under an address-space limit of 3 GiB")
    limited = run_watched([*command, "--no-verify"], address_space_bytes=ADDRESS_SPACE_BYTES)
    ratios = [made.seconds / copied.seconds for made, copied in zip(exports, copies, strict=True)]
    peak = max(run.peak_anon_bytes for run in exports) / GIB
    parity = json.loads(proof.output) if proof.code in (0, 1) else {}
    worst, floor = parity.get("worst_cosine", -1.0), quantise.load(precision).thresholds.min_cosine
    loss = (1 - worst) / (1 - bound)
    figures = [
        Figure("export: peak anonymous memory", peak, "GiB", "<= 1.5", peak <= 1.5),
        Figure(
            "export: time over cp of the same bytes",
            statistics.median(ratios),
            "x",
            "<= 1.5",
            statistics.median(ratios) <= 1.5,
            (min(ratios), max(ratios)),
        ),
        Figure(
            "export under a 3 GiB address space: exit code",
            limited.code,
            "",
            "== 0",
            limited.code == 0,
        ),
        Figure(
            "merged tensors: worst error against W + sBA",
            worst_ulp,
            f"{precision} ulp",
            "<= 0.5",
            worst_ulp <= 0.5,
        ),
        Figure("proof: worst cosine", worst, "", f">= {floor}", worst >= floor),
        Figure(
            "proof: loss over that of exact sums rounded once", loss, "x", "<= 1.05", loss <= 1.05
        ),
        Figure(
            "proof: peak anonymous memory",
            proof.peak_anon_bytes / GIB,
            "GiB",
            "<= 1.5",
            proof.peak_anon_bytes <= 1.5 * GIB,
        ),
    ]
    samples = {
        "layers": layers,
        "precision": precision,
        "parameters": spec.parameters,
        "base_bytes": weights_bytes,
        "artifact_bytes": written,
        "export_seconds": [run.seconds for run in exports],
        "export_cpu_seconds": [run.cpu_seconds for run in exports],
        "export_peak_mapped_bytes": max(run.peak_mapped_bytes for run in exports),
        "cp_seconds": [run.seconds for run in copies],
        "cp_cpu_seconds": [run.cpu_seconds for run in copies],
        "limited_seconds": limited.seconds,
        "proof_seconds": proof.seconds,
        "proof": parity,
        "proof_worst_cosine_of_exact_sums_rounded_once": bound,
    }
    name = "scale" if precision is Precision.BF16 else f"scale-{precision}"
    return record(name, figures, samples, [], results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=3, help="Pairs of export and cp (default: 3)."
    )
    parser.add_argument(
        "--precision", choices=["bf16", "fp16"], default="bf16", help="What to export (bf16)."
    )
    parser.add_argument("--quick", action="store_true", help="Two layers, one round.")
    return parse_arguments(parser)


def _copy(base: Path, target: Path) -> Run:
    """Copy the weight files as cp does, and wait until they are on the disk."""
    target.mkdir()
    files = [str(path) for path in sorted(base.glob("*.safetensors"))]
    script = 'cp --reflink=never "$@" && sync "$0"/*'
    return run_watched(["sh", "-c", script, str(target), *files, str(target)])


def _drop_caches(folder: Path) -> None:
    """Write everything out and forget what was read, so that both start cold."""
    os.sync()
    for path in folder.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _one_rounding(base: Path, adapter: Path, precision: Precision) -> float:
    """Return the worst cosine to base + adapter of W + s B A in float64, rounded once."""
    checkpoint = Checkpoint.open(base, adapter)
    assert checkpoint.adapter is not None
    deltas, dtype = checkpoint.adapter.deltas, TORCH_DTYPES[precision]

    def read(name: str) -> torch.Tensor:
        weight = checkpoint.read(name, torch.float32, merge=False)
        if name in deltas:
            b, a = deltas[name].factors()
            weight = weight.double().addmm_(b.double(), a.double(), alpha=deltas[name].scale)
        return weight.to(dtype).float()

    spec = checkpoint.spec
    tokeniser = Tokeniser.open(base, read_framing(base, spec, None))
    exact = Encoder(open_streamed(spec, read, "exact sums rounded once", {}), tokeniser)
    reference = Encoder(open_streamed_reference(checkpoint), tokeniser)
    return compare_weights(reference, exact, STREAMED_TEXTS, thresholds=Thresholds()).worst_cosine


def _spot_check(
    base: Path, adapter: Path, artifact: Path, layers: int, precision: Precision
) -> float:
    """Compare rows of merged tensors with W + s B A in float64; return the worst error in ulp."""
    bits, smallest = (7, -126) if precision is Precision.BF16 else (10, -14)
    graph = ir.load(artifact / "model.onnx").graph
    index = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    worst = 0.0
    with safe_open(adapter / "adapter_model.safetensors", "pt") as lora:
        for layer in sorted({0, layers // 2, layers - 1}):
            for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"):
                name = f"layers.{layer}.{module}"
                with safe_open(base / index[f"model.{name}.weight"], "pt") as file:
                    weight = file.get_tensor(f"model.{name}.weight").double()
                b = lora.get_tensor(f"base_model.model.model.{name}.lora_B.weight").double()
                a = lora.get_tensor(f"base_model.model.model.{name}.lora_A.weight").double()
                rows = torch.randperm(len(weight), generator=torch.Generator().manual_seed(layer))
                rows = rows[:64]
                exact = weight[rows] + ALPHA / RANK * (b[rows] @ a)
                # what fp32 sums of RANK + 1 terms may be off before the one rounding
                magnitude = weight[rows].abs() + ALPHA / RANK * (b[rows].abs() @ a.abs())
                slack = magnitude * (RANK + 2) * 2.0**-24
                stored = graph.initializers[f"{name}.weight"].const_value
                assert stored is not None
                found = (
                    torch.from_numpy(stored.numpy().view("uint16").copy())
                    .view(TORCH_DTYPES[precision])
                    .T[rows]
                )
                exponent = torch.floor(torch.log2(exact.abs().clamp_min(2.0**smallest)))
                ulp = 2.0 ** (exponent - bits)
                error = ((found.double() - exact).abs() - slack).clamp_min(0) / ulp
                worst = max(worst, error.max().item())
    return worst


def _require(run: Run) -> None:
    if run.code != 0:
        sys.exit(f"expected the export to succeed, found exit code {run.code}")


if __name__ == "__main__":
    sys.exit(main())
