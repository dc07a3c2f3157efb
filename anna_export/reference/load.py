"""Opens the reference, in memory or layer by layer."""

from collections.abc import Callable
from pathlib import Path

from anna_export.files.model_folders import Adapters, in_order
from anna_export.reference.backend import compute_label, pick_torch_device
from anna_export.reference.encoder import LibraryBackend, LibraryTokeniser, ReferenceEncoder
from anna_export.reference.library import open_library, open_library_shell
from anna_export.reference.streamed import stream_checkpoint
from anna_export.text.framing import TokenFraming, read_framing
from anna_export.text.prompt_file import find_prompts
from anna_export.text.prompts import Prompts
from anna_export.weights.checkpoint import Checkpoint


def open_reference(
    model: Path,
    adapter: Adapters = None,
    *,
    framing: TokenFraming | None = None,
    prompts: Prompts | None = None,
    device: str = "auto",
    eos_chosen: bool = False,
) -> ReferenceEncoder:
    """Load base and adapters in fp32, the last adapter unmerged, as their libraries do.

    Args:
        model: The base model's folder.
        adapter: The LoRA adapter's folder, or several in the order they are merged in.
        framing: An artifact's; its longest sequence is the reference's too. None reads the model
            folder's.
        prompts: Named prompts; None reads them from the adapter's, else the model's folder.
        device: "cpu", "cuda", or "auto" for CUDA where PyTorch has it and the model fits.
        eos_chosen: Whether the end token of `framing` was chosen at export, against or for want of
            what the tokenizer says: then it is the reference's too.

    Raises:
        AnnaError: If base or adapter is missing, damaged or not supported.
    """
    checkpoint = Checkpoint.open(model, adapter)
    spec = checkpoint.spec
    framing = framing or read_framing(model, spec, None, adapter=adapter)
    device = pick_torch_device(device, spec)
    library = open_library(model, in_order(adapter), device)
    if eos_chosen:
        library.frame(framing.front_ids, framing.back_ids)
    return ReferenceEncoder(
        LibraryBackend(library, spec, compute_label(device), device),
        LibraryTokeniser(library, framing),
        prompts if prompts is not None else find_prompts(model, adapter),
    )


def open_streamed_reference(
    checkpoint: Checkpoint,
    framing: TokenFraming,
    on_read: Callable[[], None] | None = None,
    *,
    eos_chosen: bool = False,
) -> ReferenceEncoder:
    """Open base and adapters, unmerged, in fp32, one matrix in memory at a time.

    Tokenizer and modules are the libraries' own, and so is the decoder's forward pass; its weights
    are read when they are used: y = W x + s B (A x).

    Args:
        checkpoint: Base and adapters.
        framing: As of `open_reference`.
        on_read: Called after every weight is read, once a batch.
        eos_chosen: As of `open_reference`.
    """
    adapters = [adapter.folder for adapter in checkpoint.adapters]
    library = open_library_shell(checkpoint.folder, adapters)
    if eos_chosen:
        library.frame(framing.front_ids, framing.back_ids)
    stream_checkpoint(library.transformer.model, checkpoint, on_read)
    label = "fp32 in PyTorch on CPU, layer by layer, from base and adapter"
    backend = LibraryBackend(library, checkpoint.spec, label)
    return ReferenceEncoder(backend, LibraryTokeniser(library, framing))
