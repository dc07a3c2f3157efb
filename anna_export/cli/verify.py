"""anna-export verify."""

from pathlib import Path

import click

from anna_export.cli import options, shown
from anna_export.errors import ParityError


@click.command(
    "verify",
    cls=options.Verb,
    example="anna-export verify artifact --reference base --adapter lora",
)
@options.artifact_argument
@click.option(
    "--reference",
    type=options.folder,
    required=True,
    help="Folder of the base model to hold it to.",
)
@options.adapter_option
@click.option(
    "--tier",
    type=click.Choice(["vectors"]),
    default="vectors",
    show_default=True,
    help="vectors: cosines over ordinary and odd texts, alone and in padded batches; seconds.",
)
@options.backend_option
@options.device_option
@shown.json_option
def command(
    artifact: Path,
    reference: Path,
    adapter: Path | None,
    tier: str,
    backend: str,
    device: str,
    as_json: bool,
) -> None:
    """Compare an artifact's vectors with the PyTorch model's.

    The figures are stored in the artifact. Exit code 1 if they differ by more than its precision
    allows.
    """
    from anna_export.artifact import PARITY_FILE, open_artifact
    from anna_export.card import add_proof
    from anna_export.verify.prove import prove

    opened = open_artifact(artifact)
    with shown.stage("compare vectors", "texts") as progress:
        parity = prove(opened, reference, adapter, progress, backend=backend, device=device)
    if as_json:
        shown.print_json(parity.to_json())
    else:
        shown.print_rows(shown.parity_rows(parity))
    add_proof(opened, parity)
    if parity.verdict != "pass":
        raise ParityError(
            f"expected the reference's vectors, found: {'; '.join(parity.reasons)}; read "
            f"{artifact / PARITY_FILE}"
        )
