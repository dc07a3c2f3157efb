"""Runtimes behind one protocol: `Backend.run(TokenBatch) -> (B, D)`."""

from pathlib import Path

from anna_export.artifact import open_artifact
from anna_export.encoder import Encoder


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
        backend: "ort" (ONNX Runtime), or "auto", which picks it.
        device: "cpu", "cuda", or "auto" for CUDA where ONNX Runtime has it.
        check: Hash every file before use, large weights too.
        threads: CPU threads; None for one a core.

    Returns:
        An encoder: `encode(texts)` gives (N, D) float32 vectors of unit length.

    Raises:
        AnnaError: If the artifact is missing, damaged, or cannot run here.
    """
    # a runtime's library is loaded only where it is used
    from anna_export.backends import ort

    if backend not in ("auto", "ort"):
        raise ort.unknown_backend(backend)
    opened = open_artifact(Path(artifact), check=check)
    runtime = ort.open_backend(opened, device=device, threads=threads)
    return Encoder(runtime, opened.tokeniser(), opened.manifest.prompts)
