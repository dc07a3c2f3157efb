"""The models that tasks are scored with, one after the other: memory holds one at a time."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mteb.models.model_meta import ModelMeta

from anna_export import quantise
from anna_export.artifact.folder import Artifact
from anna_export.backends import load_encoder
from anna_export.encoder import Encoder
from anna_export.files.hub_cache import folder_name
from anna_export.files.model_folders import Adapters, in_order
from anna_export.machine.memory import require_memory
from anna_export.machine.versions import installed, source_sha256
from anna_export.progress import Stage
from anna_export.quantise.footprint import forecast
from anna_export.text.batching import BatchLimits
from anna_export.text.prompts import Prompt
from anna_export.verify.mteb_model import ORGANISATION, ModelId, artifact_meta, model_meta
from anna_export.verify.prove import require_same_model
from anna_export.verify.stored_encoder import stored_prefixes
from anna_export.weights.checkpoint import Checkpoint

# The reference against itself: in batches of another size, its texts in another order.
AGAIN_TOKENS: Final = 1536
# What decides a vector, beside the model: another version, and it is embedded anew.
_LIBRARIES: Final = (
    "onnxruntime",
    "onnxruntime-gpu",
    "peft",
    "sentence-transformers",
    "tensorrt",
    "tensorrt-rtx",
    "tokenizers",
    "torch",
    "transformers",
)
_WEIGHTS: Final = ("*.safetensors", "*.json", "*.model")
_BLOCK_BYTES: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Model:
    """One model to score.

    Args:
        name: What it is called here.
        encoder: What embeds.
        identity: All that decides its vectors.
        meta: What mteb files its results under.
        prefixes: The sha256 of each stored prefix it uses, by prompt.
        shuffled: Whether it embeds texts in another order.
    """

    name: str
    encoder: Encoder
    identity: Mapping[str, object]
    meta: ModelMeta
    prefixes: Mapping[Prompt, str]
    shuffled: bool = False

    @property
    def label(self) -> str:
        """Its runtime and what that computes in."""
        return f"{self.encoder.backend.name}: {self.encoder.backend.compute_label}"


def open_models(
    artifact: Artifact,
    model: Path,
    adapter: Adapters,
    backend: str,
    device: str,
    stage: Stage,
    model_id: ModelId,
) -> Iterator[Model]:
    """Give the reference, the reference in other batches, and the artifact under its id.

    Raises:
        SpaceError: If memory does not hold one of them.
        AnnaError: If base, adapter or artifact cannot be used.
    """
    yield from _references(artifact, model, adapter, device, stage)
    manifest = artifact.manifest
    encoder = load_encoder(artifact, backend=backend, device=device)
    yield Model(
        "artifact",
        encoder,
        _identity(encoder, {"artifact_id": manifest.artifact_id}),
        artifact_meta(artifact, model_id),
        stored_prefixes(manifest) if encoder.prefixes is not None else {},
    )


def _references(
    artifact: Artifact, model: Path, adapter: Adapters, device: str, stage: Stage
) -> Iterator[Model]:
    # transformers and peft take seconds to load
    from anna_export.reference.load import open_reference

    manifest = artifact.manifest
    checkpoint = Checkpoint.open(model, adapter)
    require_same_model(manifest.spec, checkpoint)
    needed = forecast(manifest.spec, manifest.framing, quantise.scheme_of(manifest))
    require_memory(needed.reference_bytes, f"{model} in PyTorch")
    sha256 = _hash_files(model, adapter, stage)
    encoder = open_reference(
        model,
        adapter,
        framing=manifest.framing,
        prompts=manifest.prompts,
        device="cpu" if device == "cpu" else "auto",
        eos_chosen=manifest.eos_chosen,
    )
    identity = _identity(encoder, {"reference": sha256})
    folder = (model, *in_order(adapter))[-1]
    meta = model_meta(f"{ORGANISATION}/{folder_name(folder)}", sha256, manifest)
    yield Model("reference", encoder, identity, meta, {})
    limits = BatchLimits(AGAIN_TOKENS)
    others = Encoder(encoder.backend, encoder.tokeniser, encoder.prompts, None, limits)
    yield Model(
        "reference again", others, {**identity, "again": AGAIN_TOKENS}, meta, {}, shuffled=True
    )


def _identity(encoder: Encoder, model: Mapping[str, object]) -> dict[str, object]:
    versions = installed()
    return {
        **model,
        "backend": encoder.backend.name,
        "compute": encoder.backend.compute_label,
        "framing": asdict(encoder.tokeniser.framing),
        "versions": {name: versions[name] for name in _LIBRARIES if name in versions},
        "source": source_sha256(),
    }


def _hash_files(model: Path, adapter: Adapters, stage: Stage) -> str:
    """Return one sha256 over all weights, configurations and tokenizers of base and adapter."""
    paths = [
        path
        for folder in (model, *in_order(adapter))
        for pattern in _WEIGHTS
        for path in sorted(folder.glob(pattern))
    ]
    total = sum(path.stat().st_size for path in paths)
    digest, done = hashlib.sha256(), 0
    with stage("read reference", "bytes") as progress:
        for path in paths:
            digest.update(f"{path.parent == model}/{path.name}/{path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
                    done += len(block)
                    if progress is not None:
                        progress(done, total)
    return digest.hexdigest()
