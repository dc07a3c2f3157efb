"""Opens an artifact for serving, in the process that computes."""

import functools
from dataclasses import dataclass
from pathlib import Path

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import PARITY_FILE
from anna_export.artifact.prefixes import StoredPrefixes
from anna_export.backends import load_encoder
from anna_export.encoder import Encoder
from anna_export.errors import InputError
from anna_export.serve.worker import LoadedModel
from anna_export.verify.golden import read_golden


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Which artifact the process that computes loads, and how.

    Args:
        artifact: Its folder.
        backend: As `open_encoder`.
        device: As `open_encoder`.
        threads: As `open_encoder`.
        require_verified: Refuse an artifact that was not proved as it is served.
    """

    artifact: Path
    backend: str = "auto"
    device: str = "auto"
    threads: int | None = None
    require_verified: bool = False

    def __call__(self) -> LoadedModel:
        """Load it.

        Raises:
            AnnaError: If it is damaged, cannot run here, or was not proved where that is required.
        """
        artifact = open_artifact(self.artifact)
        encoder = load_encoder(
            artifact, backend=self.backend, device=self.device, threads=self.threads
        )
        if self.require_verified:
            _require_verified(artifact, encoder)
        open_safe = functools.partial(load_encoder, artifact, backend="pytorch", device="cpu")
        return LoadedModel(
            encoder,
            functools.cache(open_safe),
            read_golden(artifact),
            StoredPrefixes(artifact).ids,
        )


def _require_verified(artifact: Artifact, encoder: Encoder) -> None:
    """Refuse an artifact without a passing verdict for what it is served with.

    Raises:
        InputError: If there is none, or it is another backend's, or of other weights or prompts.
    """
    from anna_export.verify.parity_file import read_parity

    proof, manifest = read_parity(artifact), artifact.manifest
    candidate = f"{encoder.backend.name}: {encoder.backend.compute_label}"
    if proof is None:
        verdict = "none"
    elif proof.verdict != "pass":
        verdict = f"the verdict {proof.verdict}: {'; '.join(proof.reasons)}"
    elif proof.vectors.candidate != candidate:
        verdict = f"one for {proof.vectors.candidate}"
    elif (entry := manifest.evidence[PARITY_FILE]).covers != manifest.artifact_id or (
        entry.prompts != manifest.prompts.hashes()
    ):
        verdict = "one for other weights or prompts"
    else:
        return
    raise InputError(
        f"expected a passing parity verdict for {candidate} in {artifact.folder}, found {verdict}; "
        "run anna-export verify, or leave out `require_verified`"
    )
