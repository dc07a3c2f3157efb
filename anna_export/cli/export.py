"""anna-export export."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from anna_export.choices import Target
from anna_export.cli import options, shown
from anna_export.console import commands, output
from anna_export.errors import InputError
from anna_export.spec import Precision

if TYPE_CHECKING:
    from anna_export.artifact.folder import Artifact
    from anna_export.export.pipeline import Exported


@click.command(
    "export",
    cls=commands.Verb,
    example="anna-export --model base --adapter lora --out artifact --fp8",
)
@options.model_option
@options.adapter_option()
@click.option("--out", type=commands.path, required=True, help="Folder of the artifact to make.")
@options.precision_options
@click.option(
    "--high-precision",
    type=click.Choice(
        [str(precision) for precision in (Precision.BF16, Precision.FP16, Precision.FP32)]
    ),
    help="With --fp8: type of everything that is not quantised. Default: bf16, for TensorRT.",
)
@click.option(
    "--calibration",
    type=commands.path,
    help="With --fp8, --int8 or --int4: texts like those to be embedded, a .txt file with one a "
    'line or a .jsonl file of {"text": …}. Default: docstrings of Python\'s standard library.',
)
@click.option(
    "--max-loss",
    type=float,
    help="With --fp8, --int8 or --int4: largest allowed mean of 1 - cosine to the reference; 1 "
    "allows any. Default: 0.01, with --int4 0.05.",
)
@click.option(
    "--prompts",
    type=commands.path,
    help="A prompts.json: per task an instruction, worked examples, and how its documents are "
    "prompted. Default: the prompts in the adapter's folder, else the model's.",
)
@options.max_tokens_option
@options.eos_option
@commands.overwrite_option
@options.target_option(default=None)
@options.capability_option
@click.option("--no-verify", is_flag=True, help="Skip the comparison with the PyTorch reference.")
@output.json_option
def command(
    model: Path,
    adapter: tuple[Path, ...],
    out: Path,
    max_tokens: int | None,
    eos: bool | None,
    high_precision: str | None,
    calibration: Path | None,
    max_loss: float | None,
    prompts: Path | None,
    overwrite: bool,
    target: str | None,
    capabilities: tuple[str, ...],
    no_verify: bool,
    as_json: bool,
    **precisions: bool,
) -> None:
    """Merge base and adapter, build the ONNX artifact, and prove it.

    The export compares its vectors with the PyTorch model's. If they differ by more than the
    acceptance threshold, the exit code is 1 and the artifact is moved to OUT.rejected.
    """
    precision = options.chosen_precision(precisions)
    from anna_export.engines.capability import read_capability
    from anna_export.engines.request import EngineRequest
    from anna_export.export.pipeline import RejectedError, export
    from anna_export.export.recipe import Recipe
    from anna_export.quantise.options import storage

    if capabilities and target is None:
        raise InputError(
            "expected --target with --compute-capability, found none; add --target tensorrt-rtx"
        )
    engines = (
        EngineRequest(Target(target), tuple(map(read_capability, capabilities))) if target else None
    )
    stored = storage(
        precision,
        high_precision=Precision(high_precision) if high_precision else None,
        max_loss=max_loss,
        calibration=calibration,
    )
    recipe = Recipe(
        model,
        adapter,
        out,
        stored,
        max_tokens,
        overwrite,
        verify=not no_verify,
        prompts=prompts,
        engines=engines,
        eos=eos,
    )
    try:
        _show(export(recipe, output.stage), as_json)
    except RejectedError as error:
        _show(error.exported, as_json)
        raise


def _show(exported: "Exported", as_json: bool) -> None:
    from anna_export.text.framing import framing_note

    artifact, parity = exported.artifact, exported.parity
    if as_json:
        output.print_json(
            {
                "artifact": str(artifact.folder),
                "artifact_id": artifact.manifest.artifact_id,
                "precision": artifact.manifest.precision,
                "size_bytes": artifact.size_bytes,
                "framing_source": artifact.manifest.framing_source,
                "prompts": {
                    name: {"tokens": len(entry.ids), "size_bytes": entry.size_bytes}
                    for name, entry in artifact.manifest.prefixes.items()
                },
                "parity": parity.to_json() if parity else None,
                "seconds": dict(exported.seconds),
            }
        )
        return
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in exported.seconds.items())
    rows = {
        "artifact": str(artifact.folder),
        "precision": str(artifact.manifest.precision),
        "size": output.size(artifact.size_bytes),
        "time": spent,
    }
    if note := framing_note(artifact.manifest.framing_source):
        rows["framing"] = note
    if artifact.manifest.prompts.by_name:
        rows["prompts"] = shown.baked(artifact)
    rows |= shown.parity_rows(parity) if parity else {"proof": _unproved(artifact)}
    output.print_rows(rows)


def _unproved(artifact: "Artifact") -> str:
    """Say that there is no proof, and what calibration lets expect if that is too large a loss."""
    from anna_export.quantise.calibration import read_calibration

    unproved = "not verified (--no-verify)"
    calibration, quantised = read_calibration(artifact), artifact.manifest.quantised
    expected = calibration.loss if calibration else None
    allowed = quantised.max_loss if quantised else None
    if expected is None or allowed is None or expected <= allowed:
        return unproved
    return (
        f"{unproved}; calibration found a mean loss (1 - cosine) of {expected:.2e}, above {allowed}"
    )
