"""Prove an artifact against base and adapter in PyTorch, by the method that fits in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anna_export import quantise
from anna_export.artifact.folder import Artifact
from anna_export.backends import load_encoder
from anna_export.encoder import Encoder
from anna_export.errors import ParityError, ShapeError, SpaceError
from anna_export.files.model_folders import Adapters
from anna_export.progress import Progress, in_steps
from anna_export.quantise.footprint import ComparisonMethod, Forecast, forecast, method_that_fits
from anna_export.quantise.scheme import Scheme
from anna_export.spec import EmbeddingSpec
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.parity_report import VectorParity, Verdict
from anna_export.verify.reading import compare_readings
from anna_export.verify.texts import ODD_TEXTS, ordinary_texts
from anna_export.verify.vectors import compare, compare_weights, longest_texts, parity_texts
from anna_export.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from anna_export.reference.encoder import ReferenceEncoder

STREAMED_TEXTS = (*ODD_TEXTS, *ordinary_texts(4))


def prove(
    artifact: Artifact,
    model: Path,
    adapter: Adapters = None,
    progress: Progress | None = None,
    *,
    backend: str = "auto",
    device: str = "auto",
) -> VectorParity:
    """Compare an artifact's vectors with the reference's.

    Where reference and artifact do not fit in memory together, a few texts are compared, the
    reference layer by layer; and where the artifact alone does not fit, its stored weights are
    compared in PyTorch, without the graph. The result's `method` says which.

    Raises:
        ShapeError: If the reference is a model of another shape.
        SpaceError: If a backend or device was asked for, and memory does not hold both models.
        AnnaError: If base or adapter cannot be used.
    """
    manifest = artifact.manifest
    scheme = quantise.scheme_of(manifest)
    checkpoint = Checkpoint.open(model, adapter)
    require_same_model(manifest.spec, checkpoint)
    case = _Case(
        artifact=artifact,
        tokeniser=artifact.tokeniser(),
        model=model,
        adapter=adapter,
        checkpoint=checkpoint,
        scheme=scheme,
        needed=forecast(manifest.spec, manifest.framing, scheme),
        progress=progress,
        backend=backend,
        device=device,
    )
    parity = _METHODS[method_that_fits(case.needed, scheme)](case)
    return replace(parity, reference_sha256=checkpoint.source_hashes())


@dataclass(frozen=True, slots=True)
class _Case:
    """An artifact, its reference, and what they take to compare."""

    artifact: Artifact
    tokeniser: Tokeniser  # the artifact's
    model: Path
    adapter: Adapters
    checkpoint: Checkpoint  # of model and adapter
    scheme: Scheme
    needed: Forecast
    progress: Progress | None
    backend: str
    device: str

    def load_candidate(self) -> Encoder:
        return load_encoder(self.artifact, backend=self.backend, device=self.device)

    def open_reference(self) -> "ReferenceEncoder":
        """Open the reference in memory."""
        # transformers and peft take seconds to load: only who compares waits for them
        from anna_export.reference.load import open_reference

        return open_reference(
            self.model,
            self.adapter,
            framing=self.artifact.manifest.framing,
            prompts=self.artifact.manifest.prompts,
            device="cpu" if self.device == "cpu" else "auto",
            eos_chosen=self.artifact.manifest.eos_chosen,
        )

    def stream_reference(self, on_read: Callable[[], None]) -> "ReferenceEncoder":
        """Open the reference layer by layer; `on_read` is called for every weight it reads."""
        from anna_export.reference.load import open_streamed_reference

        framing = self.artifact.manifest.framing
        return open_streamed_reference(
            self.checkpoint, framing, on_read, eos_chosen=self.artifact.manifest.eos_chosen
        )

    def on_read(self, models: int, longest: Sequence[str]) -> Callable[[], None]:
        """Return what a streamed model calls for every weight it has read.

        Args:
            models: How many are streamed.
            longest: Texts that each take another pass over the weights.
        """
        weights = len(self.artifact.manifest.spec.decoder_shapes())
        passes = models * (1 + len(longest))
        return in_steps(self.progress, models * len(STREAMED_TEXTS), passes * weights)

    @property
    def few_texts(self) -> list[str]:
        """Those of STREAMED_TEXTS that are a token at least."""
        return self.tokeniser.with_tokens(STREAMED_TEXTS)

    def longest(self) -> list[str]:
        """Return the texts as long as this model takes, the longest last."""
        return longest_texts(self.tokeniser, self.artifact.manifest.spec.sliding_window)

    def with_reading(
        self, reference: "ReferenceEncoder", compared: Callable[[], VectorParity]
    ) -> VectorParity:
        """Compare what both sides read in the folder, then vectors, where they are of one length.

        Raises:
            ParityError: If they are not.
        """
        reading = compare_readings(
            reference, self.artifact.manifest, self.tokeniser, self.few_texts
        )
        if reading.dim != self.artifact.manifest.spec.embedding_dim:
            raise ParityError(
                f"expected the reference's vectors, found: {'; '.join(reading.differences)}"
            )
        parity = compared()
        reasons = [*reading.differences, *parity.reasons]
        return replace(
            parity,
            verdict=Verdict.FAIL if reasons else Verdict.PASS,
            reasons=reasons,
            reference_library=reading.library,
        )


def _by_graph(case: _Case) -> VectorParity:
    """Compare every text, with both models in memory."""
    reference, candidate = case.open_reference(), case.load_candidate()
    return case.with_reading(
        reference,
        lambda: compare(
            reference,
            candidate,
            parity_texts(case.tokeniser),
            thresholds=case.scheme.thresholds,
            method="every text by both, in padded batches of unlike lengths and at batch size 1",
            longest=case.longest(),
            comparable=reference.tokeniser.comparable,
            progress=case.progress,
        ),
    )


def _by_streaming(case: _Case) -> VectorParity:
    """Compare a few texts, with the artifact in memory and the reference layer by layer."""
    longest = case.longest()[-1:]
    reference = case.stream_reference(case.on_read(1, longest))
    candidate = Encoder(case.load_candidate().backend, case.tokeniser)
    return case.with_reading(
        reference,
        lambda: compare(
            reference,
            candidate,
            case.few_texts,
            thresholds=case.scheme.thresholds,
            method="a few texts by both, in padded batches of unlike lengths and at batch size 1; "
            "the reference, too large for this memory, layer by layer",
            longest=longest,
            together=True,
        ),
    )


def _by_weights(case: _Case) -> VectorParity:
    """Compare a few texts, with both models layer by layer: the weights, not the graph."""
    from anna_export.reference.streamed import open_streamed_artifact

    if (case.backend, case.device) != ("auto", "auto"):
        needed_bytes = case.needed.reference_bytes + case.needed.serve_bytes
        raise SpaceError(
            f"expected {needed_bytes / 1e9:.1f} GB of memory to compare by `backend` "
            f"{case.backend} on `device` {case.device}, found less; leave both out to compare the "
            "stored weights layer by layer"
        )
    longest = case.longest()[-1:]
    on_read = case.on_read(2, longest)
    reference = case.stream_reference(on_read)
    candidate = Encoder(open_streamed_artifact(case.artifact, on_read), case.tokeniser)
    return case.with_reading(
        reference,
        lambda: compare_weights(
            reference,
            candidate,
            case.few_texts,
            thresholds=case.scheme.thresholds,
            longest=longest,
        ),
    )


_METHODS: Final[Mapping[ComparisonMethod, Callable[[_Case], VectorParity]]] = {
    ComparisonMethod.EVERY_TEXT: _by_graph,
    ComparisonMethod.FEW_TEXTS: _by_streaming,
    ComparisonMethod.WEIGHTS: _by_weights,
}


def require_same_model(spec: EmbeddingSpec, reference: Checkpoint) -> None:
    """Refuse a reference of another shape.

    Raises:
        ShapeError: Naming the first number that differs.
    """
    for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim", "vocab_size"):
        expected, actual = getattr(spec, name), getattr(reference.spec, name)
        if actual != expected:
            raise ShapeError(
                f"expected a reference with {name} {expected}, as the artifact has, found {actual} "
                f"in {reference.folder}; give the model and the adapter it was made from"
            )
