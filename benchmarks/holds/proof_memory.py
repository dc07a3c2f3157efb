"""How much memory a proof layer by layer takes of a model as wide as Mistral-7B, with long texts.

    python -m benchmarks.holds.proof_memory  texts of 4,096 and 8,192 tokens; about 15 minutes
    python -m benchmarks.holds.proof_memory --quick  4,096 tokens alone

Two layers stand for all: one matrix is in memory at a time, and no layer leaves anything behind.
The adapter is a LoRA of rank 64 over all linear layers. An address-space limit makes the proof
take the models for too large; the libraries reserve 2.7 GiB of it that they never touch.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Final

from benchmarks.lib.big_model import mistral_v01, options, scratch_folder, write_adapter, write_base
from benchmarks.lib.record import Figure, Results, main, python_module, say
from benchmarks.lib.watched import Run, run_checked, run_watched

GIB: Final = 1 << 30
MOST: Final = 4.0
ADDRESS_SPACE_BYTES: Final = 6 * GIB
TOKENS: Final = (4096, 8192)
TOOL: Final = Path(sys.executable).with_name("anna-export")


def measure(arguments: Namespace) -> Results:
    """Write the model, and for each length export it, prove it, and run the reference alone."""
    results = Results(samples={"layers": arguments.layers})
    with scratch_folder(arguments.folder, "proof") as folder:
        base, adapter = folder / "base", folder / "adapter"
        spec = mistral_v01(arguments.layers)
        say(f"writing a model of {spec.layers} layers, {spec.parameters / 1e9:.2f} G parameters")
        write_base(base, spec)
        write_adapter(adapter, spec)
        for tokens in TOKENS[:1] if arguments.quick else TOKENS:
            artifact = folder / str(tokens)
            source = ["--model", str(base), "--adapter", str(adapter)]
            export = [str(TOOL), *source, "--out", str(artifact), "--bf16", "--no-verify"]
            run_checked([*export, "--max-tokens", str(tokens)])
            say(f"proving it with a text of {tokens} tokens")
            command = [str(TOOL), "verify", str(artifact), *source, "--json"]
            proof = run_watched(command, ADDRESS_SPACE_BYTES)
            alone = run_checked(python_module("holds._reference_worker", base, adapter, tokens))
            _add(results, tokens, proof, alone)
    return results


def _add(results: Results, tokens: int, proof: Run, alone: Run) -> None:
    vectors: dict[str, Any] = json.loads(proof.output)["vectors"]
    longest = f"proof with a text of {tokens:,} tokens"
    results.figures += [
        Figure(f"{longest}: worst cosine", vectors["worst_cosine"], "", ">= 0.9995",
               vectors["verdict"] == "pass"),
        _memory(f"{longest}: peak anonymous memory", proof),
        _memory(f"{longest}: the reference's alone", alone),
    ]  # fmt: skip
    results.samples[str(tokens)] = {
        "proof_seconds": proof.seconds,
        "reference_seconds": alone.seconds,
        "longest_tokens": vectors["longest_tokens"],
        "method": vectors["method"],
        "reference_library": vectors["reference_library"],
    }


def _memory(name: str, run: Run) -> Figure:
    value = run.peak_anon_bytes / GIB
    return Figure(name, value, "GiB", f"<= {MOST:g}", run.code == 0 and value <= MOST)


def _options(parser: ArgumentParser) -> None:
    options(parser)
    parser.set_defaults(layers=2)


if __name__ == "__main__":
    sys.exit(main("proof-memory", measure, quick="A text of 4,096 tokens.", options=_options))
