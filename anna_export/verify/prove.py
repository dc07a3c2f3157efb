"""Prove an artifact against base and adapter in PyTorch, by the way that fits in memory."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from anna_export import quantise
from anna_export.artifact.folder import Artifact
from anna_export.backends import load_encoder
from anna_export.encoder import Encoder
from anna_export.errors import ShapeError, SpaceError
from anna_export.progress import Progress, in_steps
from anna_export.quantise.footprint import Proof, forecast, proof_that_fits
from anna_export.spec import EmbeddingSpec
from anna_export.text.framing import find_tokenizer
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.texts import ODD_TEXTS, ordinary_texts
from anna_export.verify.vectors import Parity, compare, compare_weights, parity_texts
from anna_export.weights.checkpoint import Checkpoint

_EVERY: Final = "every text by both, in padded batches of unlike lengths and alone"
_FEW: Final = (
    "a few texts by both, in padded batches of unlike lengths and alone; the reference, too large "
    "for this memory, layer by layer"
)
STREAMED_TEXTS = (*ODD_TEXTS, *ordinary_texts(4))


def prove(
    artifact: Artifact,
    model: Path,
    adapter: Path | None = None,
    progress: Progress | None = None,
    *,
    backend: str = "auto",
    device: str = "auto",
) -> Parity:
    """Compare an artifact's vectors with the reference's.

    Where reference and artifact do not fit in memory together, a few texts are compared, the
    reference layer by layer; and where the artifact alone does not fit, its stored weights are
    compared in PyTorch, without the graph. The result's `method` says which.

    Raises:
        ShapeError: If the reference is a model of another shape.
        SpaceError: If a backend or device was asked for, and memory does not hold both models.
        AnnaError: If base or adapter cannot be used.
    """
    # transformers and peft take seconds to load: only who compares waits for them
    from anna_export.reference.load import open_reference
    from anna_export.reference.streamed import open_streamed_artifact, open_streamed_reference

    manifest = artifact.manifest
    scheme = quantise.scheme_of(manifest)
    checkpoint = Checkpoint.open(model, adapter)
    require_same_model(manifest.spec, checkpoint)
    needed = forecast(manifest.spec, manifest.framing, scheme)
    chosen = (backend, device) != ("auto", "auto")
    way = proof_that_fits(needed, scheme)
    if way is Proof.EVERY_TEXT:
        reference = open_reference(
            model,
            adapter,
            framing=manifest.framing,
            prompts=manifest.prompts,
            device="cpu" if device == "cpu" else "auto",
        )
        candidate = load_encoder(artifact, backend=backend, device=device)
        texts = parity_texts(candidate.tokeniser)
        parity = compare(
            reference, candidate, texts, limits=scheme.limits, method=_EVERY, progress=progress
        )
        return replace(parity, reference_sha256=checkpoint.source_hashes())
    tokeniser = Tokeniser.open(find_tokenizer(model, adapter), manifest.framing)
    weights = len(manifest.spec.weight_shapes())
    if way is Proof.FEW_TEXTS:
        on_read = in_steps(progress, len(STREAMED_TEXTS), weights)
        runtime = load_encoder(artifact, backend=backend, device=device).backend
        parity = compare(
            Encoder(open_streamed_reference(checkpoint, on_read), tokeniser),
            Encoder(runtime, artifact.tokeniser()),
            STREAMED_TEXTS,
            limits=scheme.limits,
            method=_FEW,
            together=True,
        )
    elif chosen:
        needed_bytes = needed.reference_bytes + needed.serve_bytes
        raise SpaceError(
            f"expected {needed_bytes / 1e9:.1f} GB of memory to compare with --backend "
            f"{backend} --device {device}, found less; leave both out to compare the stored "
            "weights layer by layer"
        )
    else:
        on_read = in_steps(progress, 2 * len(STREAMED_TEXTS), 2 * weights)
        parity = compare_weights(
            Encoder(open_streamed_reference(checkpoint, on_read), tokeniser),
            Encoder(open_streamed_artifact(artifact, on_read), artifact.tokeniser()),
            STREAMED_TEXTS,
            limits=scheme.limits,
        )
    return replace(parity, reference_sha256=checkpoint.source_hashes())


def require_same_model(spec: EmbeddingSpec, reference: Checkpoint) -> None:
    """Refuse a reference of another shape.

    Raises:
        ShapeError: Naming the first number that differs.
    """
    for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim", "vocab_size"):
        expected, found = getattr(spec, name), getattr(reference.spec, name)
        if found != expected:
            raise ShapeError(
                f"expected a reference with {name} {expected}, as the artifact has, found {found} "
                f"in {reference.folder}; give the model and the adapter it was made from"
            )
