"""The model that is trained: a frozen base, with LoRA in its linear layers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoModel, BitsAndBytesConfig, MistralModel

from anna_export.errors import InputError, MissingError, UnsupportedError
from anna_export.files.json_file import read_json
from anna_export.spec import EmbeddingSpec, read_spec
from anna_export.text.framing import read_framing
from anna_export.text.tokeniser import Tokeniser
from anna_train.recipe import LoraRecipe, TuneRecipe

_READ = ("*.json", "*.safetensors", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on disk.

    Args:
        folder: Its Hugging Face folder.
        spec: Its numbers.
        tokeniser: Its tokenizer under its framing.
    """

    folder: Path
    spec: EmbeddingSpec
    tokeniser: Tokeniser


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model in memory.

    Args:
        adapted: The base with its adapter, as peft has it.
        inner: The MistralModel in it, whose linear layers are adapted.
    """

    adapted: PeftModel
    inner: MistralModel

    def weights(self) -> dict[str, Tensor]:
        """Return the trained weights by name."""
        return {
            name: weight for name, weight in self.adapted.named_parameters() if weight.requires_grad
        }


def open_base(name: str) -> Base:
    """Find a base by its folder, or by its name on a hub, and read all but its weights.

    Raises:
        MissingError: If there is none.
        UnsupportedError: If it is quantised, or of another shape than Mistral's.
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
    spec = read_spec(folder)
    if read_json(folder / "config.json").get("quantization_config"):
        raise UnsupportedError(
            f"expected a base in fp32, fp16 or bf16, found quantization_config in {folder}; train "
            "on the original, or remove that key if the weights are plain"
        )
    framing = read_framing(folder, spec, None, eos=True)  # which training decides
    return Base(folder, spec, Tokeniser.open(folder, framing))


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
    return TrainedModel(adapted.train(), adapted.base_model.model)


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
