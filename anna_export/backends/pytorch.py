"""PyTorch: the reference (base and adapter, unmerged), and an artifact's own weights.

Modules, forward pass and adapter are those of transformers and peft; nothing of ours computes.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

from anna_export import quantise
from anna_export.adapter import WEIGHTS_FILE
from anna_export.artifact import Artifact
from anna_export.backends.devices import pick_device
from anna_export.backends.stored import empty_model, stored_model
from anna_export.checkpoint import Checkpoint
from anna_export.encoder import Encoder
from anna_export.errors import InputError
from anna_export.plan import forecast, require_memory
from anna_export.prompt_file import find_prompts
from anna_export.prompts import Prompts
from anna_export.safetensors_files import read_header
from anna_export.spec import EmbeddingSpec
from anna_export.tokenise import (
    TokenBatch,
    TokenContract,
    Tokeniser,
    find_tokenizer,
    read_contract,
)


class PytorchBackend:
    """A Hugging Face model on one device.

    Args:
        model: It returns `last_hidden_state`.
        spec: Its numbers.
        arithmetic: What it computes in, and from what.
        device: Where its weights are.
    """

    name = "pytorch"

    def __init__(
        self, model: Any, spec: EmbeddingSpec, arithmetic: str, device: str = "cpu"
    ) -> None:
        self.model = model
        self.spec = spec
        self.arithmetic = arithmetic
        self._device = device

    def run(self, batch: TokenBatch) -> np.ndarray:
        """Return (B, spec.dim) float32 rows of unit L2 length; a prefix is computed again."""
        batch = batch.whole()
        with torch.inference_mode():
            hidden = self.model(
                input_ids=self._tensor(batch.ids),
                attention_mask=self._tensor(batch.mask),
                use_cache=False,
            ).last_hidden_state
            rows = torch.arange(len(batch.lengths), device=self._device)
            last = hidden[rows, self._tensor(batch.lengths) - 1].float()
            return torch.nn.functional.normalize(last, dim=-1).cpu().numpy()

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)


def open_reference(
    model: Path,
    adapter: Path | None = None,
    *,
    contract: TokenContract | None = None,
    prompts: Prompts | None = None,
    device: str = "auto",
) -> Encoder:
    """Load base and adapter, unmerged, in fp32.

    Args:
        model: The base model's folder.
        adapter: The LoRA adapter's folder.
        contract: How token ids frame a text; None reads it from the model folder.
        prompts: Named prompts; None reads them from the adapter's, else the model's folder.
        device: "cpu", "cuda", or "auto" for CUDA where PyTorch has it and the model fits.

    Raises:
        AnnaError: If base or adapter is missing, damaged or not supported.
    """
    checkpoint = Checkpoint.open(model, adapter)
    spec = checkpoint.spec
    tokenizer = find_tokenizer(model, adapter)
    contract = contract or read_contract(tokenizer, spec, None, model)
    device = _device(device, spec)
    with quiet():
        loaded = _load(checkpoint, adapter).to(device)
    return Encoder(
        PytorchBackend(loaded, spec, _arithmetic(device), device),
        Tokeniser.open(tokenizer, contract),
        prompts if prompts is not None else find_prompts(model, adapter),
    )


def open_backend(artifact: Artifact, *, device: str = "auto") -> PytorchBackend:
    """Load an artifact's stored weights into transformers' own model, in fp32; no graph runs.

    Raises:
        InputError: If there is no such device here.
        SpaceError: If it does not fit in memory.
    """
    manifest, stored = artifact.manifest, stored_model(artifact)
    spec, device = manifest.spec, _device(device, manifest.spec)
    needed = forecast(spec, manifest.contract, quantise.scheme_of(manifest))
    require_memory(needed.reference_bytes, f"{artifact.folder} in PyTorch")
    with quiet():
        model = empty_model(spec)
    model.load_state_dict({name: stored.read(name) for name in spec.weight_shapes()}, assign=True)
    stored.listen(model)
    arithmetic = f"{_arithmetic(device)}, from the artifact's stored weights"
    return PytorchBackend(model.to(device), spec, arithmetic, device)


def _arithmetic(device: str) -> str:
    return f"fp32 in PyTorch on {device.upper()}"


def _device(asked: str, spec: EmbeddingSpec) -> str:
    # weights, and half as much again for what is computed from them
    room_bytes = 6 * spec.parameters
    has_cuda = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > room_bytes
    return pick_device(
        asked,
        has_cuda=has_cuda,
        without="expected PyTorch with a CUDA device and "
        f"{room_bytes / 1e9:.1f} GB free on it, found none; use --device cpu",
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
    known = set(peft.get_peft_model_state_dict(tuned, save_embedding_layers=True))
    if lost := keys - known:
        raise InputError(
            f"expected peft to load every tensor of {adapter}, found {len(lost)} ignored, "
            f"such as {min(lost)}"
        )
    return tuned


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own progress bars and notices off the terminal."""
    bars = transformers.utils.logging.is_progress_bar_enabled()
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # theirs to heed, not a user's: peft asks transformers for a name it has deprecated
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers.utils.logging.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
