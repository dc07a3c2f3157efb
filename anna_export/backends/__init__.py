"""Runtimes behind one protocol: `Backend.run(TokenBatch) -> (B, D)`."""

from pathlib import Path

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.prefixes import StoredPrefixes
from anna_export.choices import BACKENDS
from anna_export.encoder import Encoder
from anna_export.engines.capability import Capability
from anna_export.engines.stored import find_engine
from anna_export.errors import InputError
from anna_export.machine.gpu import find_device


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
    return load_encoder(opened, backend=backend, device=device, threads=threads)


def load_encoder(
    artifact: Artifact, *, backend: str = "auto", device: str = "auto", threads: int | None = None
) -> Encoder:
    """Load an artifact that is open already; the rest as `open_encoder`."""
    if backend not in BACKENDS:
        raise InputError(f"expected a backend of {', '.join(BACKENDS)}, found {backend!r}")
    tokeniser, prompts = artifact.tokeniser(), artifact.manifest.prompts
    # a runtime's library is loaded only where it is used
    if backend == "pytorch":
        from anna_export.backends import pytorch

        reference = pytorch.open_backend(artifact, device=device)
        return Encoder(reference, tokeniser, prompts)  # it computes whole prompts: it is the truth
    if backend == "trt" or (backend == "auto" and device != "cpu" and _has_engine(artifact)):
        from anna_export.backends import trt

        engine = trt.open_backend(artifact, device=device)
        return Encoder(engine, tokeniser, prompts, StoredPrefixes(artifact), trt.LIMITS)
    from anna_export.backends import ort

    session = ort.open_backend(artifact, device=device, threads=threads)
    return Encoder(session, tokeniser, prompts, StoredPrefixes(artifact), session.limits)


def _has_engine(artifact: Artifact) -> bool:
    """Say whether an artifact has an engine for this machine's GPU."""
    gpu = find_device()
    return gpu is not None and find_engine(artifact, Capability(*gpu.capability)) is not None
