"""The reference: base and adapter, unmerged, as transformers and peft load them."""

from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from anna_export.console.quiet import quiet_libraries
from anna_export.encoder import Encoder
from anna_export.errors import InputError
from anna_export.reference.backend import PytorchBackend, compute_label, pick_torch_device
from anna_export.text.framing import TokenFraming, find_tokenizer, read_framing
from anna_export.text.prompt_file import find_prompts
from anna_export.text.prompts import Prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.weights.adapter import WEIGHTS_FILE
from anna_export.weights.checkpoint import Checkpoint
from anna_export.weights.safetensors_files import read_header


def open_reference(
    model: Path,
    adapter: Path | None = None,
    *,
    framing: TokenFraming | None = None,
    prompts: Prompts | None = None,
    device: str = "auto",
) -> Encoder:
    """Load base and adapter, unmerged, in fp32.

    Args:
        model: The base model's folder.
        adapter: The LoRA adapter's folder.
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
        loaded = _load(checkpoint, adapter).to(device)
    return Encoder(
        PytorchBackend(loaded, spec, compute_label(device), device),
        Tokeniser.open(tokenizer, framing),
        prompts if prompts is not None else find_prompts(model, adapter),
    )


def _load(checkpoint: Checkpoint, adapter: Path | None) -> Any:
    keys = set(read_header(adapter / WEIGHTS_FILE)) if adapter else set()
    # an adapter trained under a language head names its modules one level deeper
    headed = any(key.startswith("base_model.model.model.") for key in keys)
    kind = transformers.AutoModelForCausalLM if headed else transformers.AutoModel
    model = kind.from_pretrained(checkpoint.folder, dtype=torch.float32, local_files_only=True)
    if model.config.vocab_size != checkpoint.spec.vocab_size:
        model.resize_token_embeddings(checkpoint.spec.vocab_size, mean_resizing=False)
    if adapter is not None:
        model = _with_adapter(model, adapter, keys).get_base_model()
    model.eval()
    return model.model if headed else model


def _with_adapter(base: Any, adapter: Path, keys: set[str]) -> Any:
    tuned = peft.PeftModel.from_pretrained(base, adapter, local_files_only=True)
    # peft ignores tensors it finds no place for; a reference without them would prove nothing
    loaded = set(peft.get_peft_model_state_dict(tuned, save_embedding_layers=True))
    if lost := keys - loaded:
        raise InputError(
            f"expected peft to load every tensor of {adapter}, found {len(lost)} ignored, "
            f"such as {min(lost)}"
        )
    return tuned
