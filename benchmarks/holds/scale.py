"""Export a full-size model: memory, time against copying the same bytes, and correctness.

    python -m benchmarks.holds.scale  the whole model: 32 GB of disk, 20 minutes
    python -m benchmarks.holds.scale --precision fp16  the same, exported as fp16
    python -m benchmarks.holds.scale --layers 4  a slice of it
    python -m benchmarks.holds.scale --shape qwen3-8b --layers 4  of another family
    python -m benchmarks.holds.scale --quick  two layers, one round

The model, Mistral-7B v0.1 unless another is asked for, has the real shape and random weights, bf16
in shards as hubs hold it, under a LoRA of rank 64 over all linear layers. Each round copies and
exports, each from a cold page cache.

What storing merged weights in 16 bits costs depends on the model; random weights amplify it from
layer to layer. So the proof's cosine has its bound beside it: the exact sums, rounded once.
"""

import json
import os
import shutil
import statistics
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from safetensors import safe_open

from anna_export import quantise
from anna_export.encoder import Encoder
from anna_export.files.disk import disk_free_bytes
from anna_export.quantise.scheme import Thresholds
from anna_export.reference.streamed import open_streamed, open_streamed_checkpoint
from anna_export.spec import EmbeddingSpec, Precision
from anna_export.text.framing import read_framing
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.prove import STREAMED_TEXTS
from anna_export.verify.vectors import compare_weights
from anna_export.weights.checkpoint import TORCH_DTYPES, Checkpoint
from benchmarks.lib.big_model import (
    ALPHA,
    RANK,
    SHAPES,
    options,
    scratch_folder,
    write_adapter,
    write_base,
)
from benchmarks.lib.record import Figure, Results, main, say
from benchmarks.lib.watched import Run, run_watched

GIB = 1 << 30
ADDRESS_SPACE_BYTES = 3 * GIB
# the libraries of the proof reserve 2.7 GiB that they never touch
PROOF_ADDRESS_SPACE_BYTES = 6 * GIB
TOOL = Path(sys.executable).with_name("anna-export")


@dataclass(frozen=True, slots=True)
class Model:
    """The model that is exported, and where its artifact goes.

    Args:
        base: Its weights.
        adapter: The LoRA over them.
        out: Where it is exported.
        exported: The last round's artifact.
        layers: Of the model.
        precision: Of the artifact.
    """

    base: Path
    adapter: Path
    out: Path
    exported: Path
    layers: int
    precision: Precision

    @property
    def export(self) -> list[str]:
        """The command that exports it."""
        source = ["--model", str(self.base), "--adapter", str(self.adapter)]
        return [str(TOOL), *source, "--out", str(self.out), f"--{self.precision}", "--json"]


def measure(arguments: Namespace) -> Results:
    """Write the model, export it in rounds, check and prove the last artifact."""
    layers = 2 if arguments.quick else arguments.layers
    rounds = 1 if arguments.quick else arguments.rounds
    shape, precision = SHAPES[arguments.shape], Precision(arguments.precision)
    spec = shape(layers) if layers else shape()
    layers = spec.layers
    with scratch_folder(arguments.folder, "scale") as folder:
        _require_disk(folder, spec)
        base, adapter = folder / "base", folder / "adapter"
        model = Model(base, adapter, folder / "artifact", folder / "exported", layers, precision)
        say(f"writing a model of {layers} layers, {spec.parameters / 1e9:.2f} G parameters")
        base_bytes = write_base(base, spec)
        write_adapter(adapter, spec)
        os.sync()
        exports, copies = _export_in_rounds(model, rounds)
        artifact_bytes = sum(path.stat().st_size for path in model.exported.glob("model*"))
        worst_ulp = _spot_check(base, adapter, model.exported, layers, precision)
        say("proving it layer by layer against base and adapter")
        proof = _prove(model)
        shutil.rmtree(model.exported)
        say("the same with exact sums, rounded once")
        bound = _one_rounding(base, adapter, precision)
        say("exporting under an address-space limit of 3 GiB")
        limited = run_watched([*model.export, "--no-verify"], ADDRESS_SPACE_BYTES)
    parity = json.loads(proof.output)["vectors"] if proof.code in (0, 1) else {}
    figures = [
        *_export_figures(exports, copies, limited),
        _figure("merged tensors: worst error against W + sBA", worst_ulp, f"{precision} ulp", 0.5),
        *_proof_figures(precision, parity.get("worst_cosine", -1.0), bound, proof),
    ]
    samples = {
        "layers": layers,
        "precision": precision,
        "parameters": spec.parameters,
        "base_bytes": base_bytes,
        "artifact_bytes": artifact_bytes,
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
    name = "scale" if arguments.shape == "mistral-7b" else f"scale-{arguments.shape}"
    if precision is not Precision.BF16:
        name += f"-{precision}"
    return Results(figures, samples, name=name)


def _require_disk(folder: Path, spec: EmbeddingSpec) -> None:
    sides = (sum(spec.weight_shapes()[f"{name}.weight"]) for name in spec.linear_modules())
    adapter_bytes = RANK * 4 * sum(sides)
    needed = 2 * spec.parameters * 2 + adapter_bytes + 2 * GIB
    free = disk_free_bytes(folder)
    if free < needed:
        say(
            f"expected {needed / 1e9:.0f} GB free under {folder.parent}, found "
            f"{free / 1e9:.0f} GB; use --folder or --layers"
        )
        sys.exit(2)


def _export_in_rounds(model: Model, rounds: int) -> tuple[list[Run], list[Run]]:
    """Copy the base's files and export it, in turn; return the exports and the copies."""
    folder = model.out.parent
    exports, copies = [], []
    for index in range(rounds):
        _drop_caches(folder)
        copies.append(_copy(model.base, folder / "copy"))
        _require(copies[-1])
        shutil.rmtree(folder / "copy")
        _drop_caches(folder)
        exports.append(run_watched([*model.export, "--no-verify"]))
        _require(exports[-1])
        if index < rounds - 1:
            shutil.rmtree(model.out)
        else:
            model.out.rename(model.exported)
        say(f"round {index + 1}: export {exports[-1].seconds:.1f} s, cp {copies[-1].seconds:.1f} s")
    return exports, copies


def _prove(model: Model) -> Run:
    command = [str(TOOL), "verify", str(model.exported), "--reference", str(model.base)]
    command += ["--adapter", str(model.adapter), "--json"]
    return run_watched(command, address_space_bytes=PROOF_ADDRESS_SPACE_BYTES)


def _export_figures(exports: list[Run], copies: list[Run], limited: Run) -> list[Figure]:
    ratios = [run.seconds / copy.seconds for run, copy in zip(exports, copies, strict=True)]
    ratio, spread = statistics.median(ratios), (min(ratios), max(ratios))
    peak = max(run.peak_anon_bytes for run in exports) / GIB
    name = "export under a 3 GiB address space: exit code"
    return [
        _figure("export: peak anonymous memory", peak, "GiB", 1.5),
        _figure("export: time over cp of the same bytes", ratio, "x", 1.5, spread),
        Figure(name, limited.code, "", "== 0", limited.code == 0),
    ]


def _proof_figures(precision: Precision, worst: float, bound: float, proof: Run) -> list[Figure]:
    min_cosine = quantise.load(precision).thresholds.min_cosine
    assert min_cosine is not None
    loss = (1 - worst) / (1 - bound)
    return [
        Figure("proof: worst cosine", worst, "", f">= {min_cosine}", worst >= min_cosine),
        _figure("proof: loss over that of exact sums rounded once", loss, "x", 1.05),
        _figure("proof: peak anonymous memory", proof.peak_anon_bytes / GIB, "GiB", 4.0),
    ]


def _figure(
    name: str, value: float, unit: str, most: float, spread: tuple[float, float] | None = None
) -> Figure:
    return Figure(name, value, unit, f"<= {most}", value <= most, spread)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--rounds", type=int, default=3, help="Pairs of export and cp (default: 3)."
    )
    parser.add_argument(
        "--precision", choices=["bf16", "fp16"], default="bf16", help="What to export (bf16)."
    )
    parser.add_argument(
        "--shape", choices=SHAPES, default="mistral-7b", help="Whose shape (mistral-7b)."
    )
    options(parser)


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
    dtype = TORCH_DTYPES[precision]

    def read(name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        weight = checkpoint.read(name, torch.float32, merge=False, rows=rows)
        for delta in checkpoint.deltas(name):
            b, a = delta.factors()
            weight = weight.double().addmm_(b.double(), a.double(), alpha=delta.scale)
        return weight.to(dtype).float()

    spec = checkpoint.spec
    tokeniser = Tokeniser.open(base, read_framing(base, spec, None))
    exact = Encoder(open_streamed(spec, read, "exact sums rounded once"), tokeniser)
    reference = Encoder(open_streamed_checkpoint(checkpoint), tokeniser)
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
                merged = (
                    torch.from_numpy(stored.numpy().view("uint16").copy())
                    .view(TORCH_DTYPES[precision])
                    .T[rows]
                )
                exponent = torch.floor(torch.log2(exact.abs().clamp_min(2.0**smallest)))
                ulp = 2.0 ** (exponent - bits)
                error = ((merged.double() - exact).abs() - slack).clamp_min(0) / ulp
                worst = max(worst, error.max().item())
    return worst


def _require(run: Run) -> None:
    if run.code != 0:
        sys.exit(f"expected the export to succeed, found exit code {run.code}")


if __name__ == "__main__":
    sys.exit(main("scale", measure, quick="Two layers, one round.", options=_options))
