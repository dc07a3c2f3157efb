"""The model that is trained: a frozen base, with LoRA in its linear layers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoModel, BitsAndBytesConfig

from anna_export.errors import InputError, MissingError, UnsupportedError
from anna_export.files.json_file import read_json
from anna_export.reference.head import head_weights
from anna_export.spec import EmbeddingSpec, PoolingMode, read_spec
from anna_export.text.framing import read_framing
from anna_export.text.tokeniser import Tokeniser
from anna_export.weights.checkpoint import Checkpoint
from anna_export.weights.modules import Modules, read_modules
from anna_train.model.forward import Decoder
from anna_train.recipe import LoraRecipe, TuneRecipe

_READ = ("*.json", "*.safetensors", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on disk.

    Args:
        folder: Its Hugging Face folder.
        spec: Its numbers.
        modules: What stands behind it, and stays as it is.
        tokeniser: Its tokenizer under its framing.
    """

    folder: Path
    spec: EmbeddingSpec
    modules: Modules
    tokeniser: Tokeniser


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model in memory.

    Args:
        adapted: The base with its adapter, as peft has it.
        inner: The decoder in it, whose linear layers are adapted.
    """

    adapted: PeftModel
    inner: Decoder

    def weights(self) -> dict[str, Tensor]:
        """Return the trained weights by name."""
        return {
            name: weight for name, weight in self.adapted.named_parameters() if weight.requires_grad
        }


def open_base(name: str) -> Base:
    """Find a base by its folder, or by its name on a hub, and read all but its weights.

    Raises:
        MissingError: If there is none.
        UnsupportedError: If it is quantised, or of no supported family.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, allow_patterns=list(_READ)))
        except Exception as error:  # the hub's errors share no class
            raise MissingError(
                f"expected a folder, or a model on the hub, named {name!r}, found: "
                f"{str(error).splitlines()[0]}; name the base model's folder"
            ) from None
    modules = read_modules(folder)
    spec = modules.with_head(read_spec(folder))
    if read_json(folder / "config.json").get("quantization_config"):
        raise UnsupportedError(
            f"expected a base in fp32, fp16 or bf16, found quantization_config in {folder}; train "
            "on the original, or remove that key if the weights are plain"
        )
    # the last token is what is trained to be the vector: it is an end token from then on
    eos = True if spec.head.pooling is PoolingMode.LAST else None
    framing = read_framing(folder, spec, None, eos=eos)
    return Base(folder, spec, modules, Tokeniser.open(folder, framing))


def load_model(base: Base, recipe: TuneRecipe, device: torch.device) -> TrainedModel:
    """Load a base's weights and put a new adapter into it.

    Raises:
        InputError: If the base has no layers of an adapter's target, or names its weights in a way
            that transformers does not.
        UnsupportedError: If it is to be quantised without CUDA.
    """
    require_targets(base.spec, recipe.lora)
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if recipe.run.precision == "fp32":
        options["dtype"] = torch.float32
    if recipe.lora.quantise == "nf4":
        if device.type != "cuda":
            raise UnsupportedError(
                "expected CUDA for lora.quantise nf4 (QLoRA), found none; set it to none"
            )
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=options["dtype"],
        )
        options["device_map"] = {"": device}
    loaded, loading = AutoModel.from_pretrained(
        base.folder,
        local_files_only=True,
        attn_implementation="sdpa",
        output_loading_info=True,
        **options,
    )
    if missing := loading["missing_keys"]:
        raise InputError(
            f"expected the weight {min(missing)} by that name in {base.folder}, found another name "
            f"({len(missing)} such); save the base again with save_pretrained"
        )
    torch.manual_seed(recipe.seed)
    adapted = get_peft_model(loaded, lora_config(recipe.lora))
    if recipe.lora.quantise == "none":
        adapted.to(device)
    return TrainedModel(adapted.train(), _decoder(base, adapted, device))


def _decoder(base: Base, adapted: PeftModel, device: torch.device) -> Decoder:
    weights: dict[str, Tensor] = {}
    if base.spec.head.dense:
        checkpoint = Checkpoint.open(base.folder)
        read = head_weights(base.spec.head, lambda name: checkpoint.read(name, torch.float32))
        weights = {name: weight.to(device) for name, weight in read.items()}
    return Decoder(adapted.base_model.model, base.spec, weights)


def lora_config(recipe: LoraRecipe) -> LoraConfig:
    """Return the adapter as peft describes it."""
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.targets),
        use_rslora=recipe.rslora,
        task_type=TaskType.FEATURE_EXTRACTION,
    )


def require_targets(spec: EmbeddingSpec, recipe: LoraRecipe) -> None:
    """Hold every target to being a layer of the base.

    Raises:
        InputError: Naming those there are.
    """
    names = sorted({name.rpartition(".")[2] for name in spec.linear_modules()})
    unknown = [target for target in recipe.targets if target not in names]
    if unknown or not recipe.targets:
        raise InputError(
            f"expected lora.targets of {', '.join(names)}, found {', '.join(unknown) or 'none'}"
        )


def require_gradients(weights: dict[str, Tensor]) -> None:
    """Hold every LoRA B to a gradient in the first step: a silent one is never trained.

    Raises:
        InputError: If one has none, as when checkpointing cuts it off.
    """
    silent = [
        name
        for name, weight in weights.items()
        if "lora_B" in name and (weight.grad is None or not weight.grad.any())
    ]
    if silent:
        raise InputError(
            f"expected a gradient in every lora_B, found none in {len(silent)}, the first "
            f"{silent[0]}; give a batch whose loss is not flat (more queries or negatives)"
        )
