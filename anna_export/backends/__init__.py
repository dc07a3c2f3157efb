"""Runtimes behind one protocol: `Backend.run(TokenBatch) -> (B, D)`."""

from dataclasses import dataclass
from pathlib import Path

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.prefixes import StoredPrefixes
from anna_export.choices import BACKENDS
from anna_export.encoder import Encoder
from anna_export.engines.capability import Capability
from anna_export.engines.stored import find_engine
from anna_export.errors import DamagedError, InputError
from anna_export.machine.gpu import find_device
from anna_export.text.prompts import Prompts


def open_encoder(
    artifact: str | Path,
    *,
    backend: str = "auto",
    device: str = "auto",
    check: bool = False,
    threads: int | None = None,
) -> Encoder:
    """Open an artifact for embedding.

    Args:
        artifact: The artifact's folder.
        backend: "ort" (ONNX Runtime), "trt" (the artifact's TensorRT engine for this GPU),
            "pytorch" (the stored weights in fp32, for comparing), or "auto": the engine where there
            is one for this GPU, else ONNX Runtime.
        device: "cpu", "cuda", or "auto" for CUDA where the backend has it.
        check: Hash every file before use, large weights too.
        threads: CPU threads; None for one a core. PyTorch's are its own.

    Returns:
        An encoder: `encode(texts)` gives (N, D) float32 vectors of unit length.

    Raises:
        AnnaError: If the artifact is missing, damaged, or cannot run here.
    """
    opened = open_artifact(Path(artifact), check=check)
    return load_encoder(opened, backend=backend, device=device, threads=threads, check=check)


@dataclass(frozen=True, slots=True)
class Opening:
    """An artifact and how it was opened: what an encoder is pickled and copied as.

    Args:
        folder: Where it is, in every process.
        artifact_id: What must be there.
        prompts: The prompts that it must have.
        backend: As `open_encoder`.
        device: As `open_encoder`.
        check: As `open_encoder`.
        threads: As `open_encoder`.
    """

    folder: Path
    artifact_id: str
    prompts: Prompts
    backend: str
    device: str
    check: bool
    threads: int | None

    def __call__(self) -> Encoder:
        """Open it again.

        Raises:
            AnnaError: If the artifact is another by now, or cannot run here.
        """
        artifact = open_artifact(self.folder, check=self.check)
        manifest = artifact.manifest
        if (manifest.artifact_id, manifest.prompts) != (self.artifact_id, self.prompts):
            raise DamagedError(
                f"expected the artifact {self.artifact_id[:12]} with its prompts in {self.folder}, "
                f"of which an encoder was pickled, found {manifest.artifact_id[:12]}; open the new "
                "one with open_encoder"
            )
        return load_encoder(
            artifact,
            backend=self.backend,
            device=self.device,
            check=self.check,
            threads=self.threads,
        )


def load_encoder(
    artifact: Artifact,
    *,
    backend: str = "auto",
    device: str = "auto",
    check: bool = False,
    threads: int | None = None,
) -> Encoder:
    """Load an artifact that is open already; `check` is for its copies, the rest as there."""
    if backend not in BACKENDS:
        raise InputError(f"expected a backend of {', '.join(BACKENDS)}, found {backend!r}")
    tokeniser, prompts = artifact.tokeniser(), artifact.manifest.prompts
    folder, artifact_id = artifact.folder.absolute(), artifact.manifest.artifact_id
    again = Opening(folder, artifact_id, prompts, backend, device, check, threads)
    # a runtime's library is loaded only where it is used
    if backend == "pytorch":
        from anna_export.backends import pytorch

        reference = pytorch.open_backend(artifact, device=device)
        # it computes whole prompts: it is the truth
        return Encoder(reference, tokeniser, prompts, reopen=again)
    if backend == "trt" or (backend == "auto" and device != "cpu" and _has_engine(artifact)):
        from anna_export.backends import trt

        engine = trt.open_backend(artifact, device=device)
        return Encoder(engine, tokeniser, prompts, StoredPrefixes(artifact), trt.LIMITS, again)
    from anna_export.backends import ort

    session = ort.open_backend(artifact, device=device, threads=threads)
    return Encoder(session, tokeniser, prompts, StoredPrefixes(artifact), session.limits, again)


def _has_engine(artifact: Artifact) -> bool:
    """Say whether an artifact has an engine for this machine's GPU."""
    gpu = find_device()
    return gpu is not None and find_engine(artifact, Capability(*gpu.capability)) is not None
