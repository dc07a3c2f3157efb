"""anna-export verify."""

import errno
from pathlib import Path
from typing import TYPE_CHECKING

import click

from anna_export.cli import options, shown
from anna_export.errors import ParityError

if TYPE_CHECKING:
    from anna_export.artifact import Artifact
    from anna_export.verify.vectors import Parity


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
    help="vectors: cosines over ordinary and odd texts, alone and in padded batches; seconds "
    "for a small model, minutes for 7 billion parameters.",
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

    The figures are stored in the artifact if the reference is what it was made from. Exit code 1
    if the vectors differ by more than its precision allows.
    """
    from anna_export.artifact import open_artifact
    from anna_export.verify.prove import prove

    opened = open_artifact(artifact)
    with shown.stage("compare vectors", "texts") as progress:
        parity = prove(opened, reference, adapter, progress, backend=backend, device=device)
    stored = _store(opened, parity)
    if as_json:
        shown.print_json({**parity.to_json(), "stored": stored})
    else:
        shown.print_rows(shown.parity_rows(parity) | {"stored": stored})
    if parity.verdict != "pass":
        raise ParityError(f"expected the reference's vectors, found: {'; '.join(parity.reasons)}")


def _store(artifact: "Artifact", parity: "Parity") -> str:
    """Keep a proof of what the artifact was made from, in the artifact; say where, or why not."""
    from anna_export.artifact import PARITY_FILE
    from anna_export.card import add_proof

    if parity.reference_sha256 != artifact.manifest.source.sha256:
        return "nowhere: this reference is not what the artifact was made from"
    try:
        add_proof(artifact, parity)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return f"nowhere: {artifact.folder} may not be written to"
    return str(artifact.folder / PARITY_FILE)
