"""The reference: base and adapter, unmerged, as transformers and peft load them."""

from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from anna_export.console.quiet import quiet_libraries
from anna_export.encoder import Encoder
from anna_export.errors import InputError
from anna_export.files.model_folders import Adapters
from anna_export.reference.backend import PytorchBackend, compute_label, pick_torch_device
from anna_export.reference.head import head_weights
from anna_export.reference.plain_folder import plain_adapter, plain_model
from anna_export.spec import EMBEDDING_WEIGHT
from anna_export.text.framing import TokenFraming, find_tokenizer, read_framing
from anna_export.text.prompt_file import find_prompts
from anna_export.text.prompts import Prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.weights.adapter import WEIGHTS_FILE
from anna_export.weights.checkpoint import Checkpoint
from anna_export.weights.names import is_replaced, saved_name
from anna_export.weights.safetensors_files import read_header


def open_reference(
    model: Path,
    adapter: Adapters = None,
    *,
    framing: TokenFraming | None = None,
    prompts: Prompts | None = None,
    device: str = "auto",
) -> Encoder:
    """Load base and adapters in fp32, the last adapter unmerged.

    Args:
        model: The base model's folder.
        adapter: The LoRA adapter's folder, or several in the order they are merged in.
        framing: How token ids frame a text; None reads it from the model folder.
        prompts: Named prompts; None reads them from the adapter's, else the model's folder.
        device: "cpu", "cuda", or "auto" for CUDA where PyTorch has it and the model fits.

    Raises:
        AnnaError: If base or adapter is missing, damaged or not supported.
    """
    checkpoint = Checkpoint.open(model, adapter)
    spec = checkpoint.spec
    tokenizer = find_tokenizer(model, adapter)
    framing = framing or read_framing(model, spec, None, adapter=adapter)
    device = pick_torch_device(device, spec)
    with quiet_libraries():
        loaded = _load(checkpoint).to(device)
    behind = head_weights(spec.head, lambda name: checkpoint.read(name, torch.float32))
    return Encoder(
        PytorchBackend(loaded, spec, compute_label(device), device, behind),
        Tokeniser.open(tokenizer, framing),
        prompts if prompts is not None else find_prompts(model, adapter),
    )


def _load(checkpoint: Checkpoint) -> Any:
    keys = [
        {saved_name(key) for key in read_header(lora.folder / WEIGHTS_FILE) if not is_replaced(key)}
        for lora in checkpoint.adapters
    ]
    # an adapter trained under a language head names its modules one level deeper
    headed = [any(key.startswith("base_model.model.model.") for key in each) for each in keys]
    kind = transformers.AutoModelForCausalLM if any(headed) else transformers.AutoModel
    with plain_model(checkpoint.folder) as folder:
        model = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    inner = model.model if any(headed) else model
    for index, lora in enumerate(checkpoint.adapters):
        embedding = lora.replaced.get(EMBEDDING_WEIGHT)
        if embedding is not None and embedding.shape[0] != model.config.vocab_size:
            model.resize_token_embeddings(embedding.shape[0], mean_resizing=False)
        tuned = _with_adapter(model if headed[index] else inner, lora.folder, keys[index])
        if lora is not checkpoint.adapters[-1]:
            tuned.merge_and_unload()
    return inner.eval()


def _with_adapter(base: Any, adapter: Path, keys: set[str]) -> Any:
    with plain_adapter(adapter) as folder:
        tuned = peft.PeftModel.from_pretrained(base, folder, local_files_only=True)
    # peft ignores tensors it finds no place for; a reference without them would prove nothing
    loaded = set(peft.get_peft_model_state_dict(tuned, save_embedding_layers=True))
    loaded |= set(tuned.state_dict())  # the base's own weights, where they were saved with it
    if lost := keys - loaded:
        raise InputError(
            f"expected peft to load every tensor of {adapter}, found {len(lost)} ignored, "
            f"such as {min(lost)}"
        )
    return tuned
