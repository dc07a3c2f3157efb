"""An artifact's stored weights in PyTorch, in fp32; no graph runs."""

from anna_export import quantise
from anna_export.artifact.folder import Artifact
from anna_export.console.quiet import quiet_libraries
from anna_export.machine.memory import require_memory
from anna_export.quantise.footprint import forecast
from anna_export.reference.backend import PytorchBackend, compute_label, pick_torch_device
from anna_export.reference.head import head_weights
from anna_export.reference.model import empty_model
from anna_export.reference.stored import stored_model


def open_backend(artifact: Artifact, *, device: str = "auto") -> PytorchBackend:
    """Load an artifact's stored weights into transformers' own model, in fp32; no graph runs.

    Raises:
        InputError: If there is no such device here.
        SpaceError: If it does not fit in memory.
    """
    manifest, stored = artifact.manifest, stored_model(artifact)
    spec, device = manifest.spec, pick_torch_device(device, manifest.spec)
    needed = forecast(spec, manifest.framing, quantise.scheme_of(manifest))
    require_memory(needed.reference_bytes, f"{artifact.folder} in PyTorch")
    with quiet_libraries():
        model = empty_model(spec)
    model.load_state_dict({name: stored.read(name) for name in spec.decoder_shapes()}, assign=True)
    stored.listen(model)
    label = f"{compute_label(device)}, from the artifact's stored weights"
    behind = head_weights(spec.head, stored.read)
    return PytorchBackend(model.to(device), spec, label, device, behind)
