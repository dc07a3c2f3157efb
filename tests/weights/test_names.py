"""Names as wrappers leave them: the same weights as without, or refused as names."""

import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from anna_export.errors import AnnaError, DamagedError, MissingError, UnsupportedError
from anna_export.weights.adapter import WEIGHTS_FILE, read_adapter
from anna_export.weights.checkpoint import SINGLE_FILE, Checkpoint
from tests.support import refusals
from tests.support.types import MakeAdapter
from tests.weights.test_checkpoint import by_peft, require_equal, trained

pytestmark = pytest.mark.filterwarnings("ignore:::peft")

Rename = Callable[[str], str]
# by a wrapper of all, of a layer, and of one module
SPELLINGS: dict[str, Rename] = {
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "a compiled layer": lambda key: key.replace("layers.1.", "layers.1._orig_mod."),
    "DataParallel": lambda key: f"module.{key}",
    "a compiled model in DDP": lambda key: f"module._orig_mod.{key}",
    "FSDP": lambda key: f"_fsdp_wrapped_module.{key}",
    "FSDP of every layer": lambda key: key.replace("layers.1.", "layers.1._fsdp_wrapped_module."),
    "activation checkpointing": lambda key: key.replace(
        "layers.1.", "layers.1._checkpoint_wrapped_module."
    ),
    "FSDP, checkpointing and compiling": lambda key: key.replace(
        "layers.1.", "layers.1._fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod."
    ),
    "a strategy of Lightning": lambda key: f"_forward_module.{key}",
    # an adapter's alone
    "torch.compile, then adapted": lambda key: key.replace(".model.", ".model._orig_mod.", 1),
    "no prefix of peft": lambda key: key.removeprefix("base_model.model."),
}
MODULE = "layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def lora(small: Path, make_adapter: MakeAdapter) -> Path:
    return trained(make_adapter(small, rank_pattern={MODULE: 3}, modules_to_save=["norm"]))


@pytest.fixture
def copy(lora: Path, tmp_path: Path) -> Path:
    """A copy of the adapter, to rename in."""
    return Path(shutil.copytree(lora, tmp_path / "adapter"))


@pytest.fixture
def base(small: Path, tmp_path: Path) -> Path:
    """A copy of the base, to rename in."""
    return Path(shutil.copytree(small, tmp_path / "base"))


def rename(path: Path, change: Rename) -> None:
    tensors = load_file(path)
    renamed = {change(key): tensor for key, tensor in tensors.items()}
    assert set(renamed) != set(tensors)
    save_file(renamed, path)


def save(module: torch.nn.Module, path: Path) -> None:
    save_file({key: tensor.contiguous() for key, tensor in module.state_dict().items()}, path)


def refusal(kind: type[AnnaError], base: Path, adapter: Path | None = None) -> str:
    return refusals.refusal(kind, lambda: Checkpoint.open(base, adapter))


# -- adapters --


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_wrappers_part_in_an_adapters_names_is_taken_out(
    small: Path, lora: Path, copy: Path, spelling: str
) -> None:
    rename(copy / WEIGHTS_FILE, SPELLINGS[spelling])
    require_equal(Checkpoint.open(small, copy), by_peft(small, lora))


def test_adapters_own_name_in_its_factors_is_taken_out_as_peft_does(
    small: Path, lora: Path, copy: Path
) -> None:
    rename(copy / WEIGHTS_FILE, lambda key: key.replace("_A.", "_A.default."))
    expected = by_peft(small, copy)
    assert all(weight.equal(expected[name]) for name, weight in by_peft(small, lora).items())
    require_equal(Checkpoint.open(small, copy), expected)


@pytest.mark.parametrize("wrap", [lambda model: model, torch.compile, torch.nn.DataParallel])
@pytest.mark.parametrize("factors_alone", [True, False], ids=["factors", "everything"])
def test_adapter_saved_by_state_dict_is_what_peft_merges(
    small: Path,
    lora: Path,
    tmp_path: Path,
    wrap: Callable[[torch.nn.Module], torch.nn.Module],
    factors_alone: bool,
) -> None:
    model = transformers.AutoModel.from_pretrained(small, dtype=torch.float32)
    tuned = peft.PeftModel.from_pretrained(model, lora, adapter_name="code_search")
    tuned.save_pretrained(tmp_path)
    folder = tmp_path / "code_search"
    save(wrap(tuned), folder / WEIGHTS_FILE)
    if factors_alone:
        tensors = load_file(folder / WEIGHTS_FILE)
        adapted = {key: t for key, t in tensors.items() if "lora_" in key or "to_save" in key}
        save_file(adapted, folder / WEIGHTS_FILE)
    require_equal(Checkpoint.open(small, folder), by_peft(small, lora))


@pytest.mark.parametrize("kind", ["modules_to_save", "trainable_token_indices", "target_modules"])
def test_embedding_saved_by_state_dict_is_what_peft_merges(
    small: Path, make_adapter: MakeAdapter, kind: str
) -> None:
    options = {
        "modules_to_save": ["embed_tokens"],
        "trainable_token_indices": [5, 2],
        "target_modules": ["q_proj", "embed_tokens"],
    }
    folder = trained(make_adapter(small, **{kind: options[kind]}))
    expected = by_peft(small, folder)
    model = transformers.AutoModel.from_pretrained(small, dtype=torch.float32)
    save(peft.PeftModel.from_pretrained(model, folder), folder / WEIGHTS_FILE)
    require_equal(Checkpoint.open(small, folder), expected)


def test_two_adapters_in_one_file_are_refused_by_their_names(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS_FILE)
    both = {
        key.replace("_A.", f"_A.{name}."): tensor.clone()
        for name in ("first", "second")
        for key, tensor in tensors.items()
    }
    save_file(both, copy / WEIGHTS_FILE)
    message = refusals.refusal(DamagedError, lambda: read_adapter(copy))
    assert "_A.first.weight in" in message and "_A.second.weight in" in message


@pytest.mark.parametrize("change", ["encoder.{}", "layers.2.inner"])
def test_adapters_name_that_fits_nothing_is_refused_as_a_name(
    small: Path, copy: Path, change: str
) -> None:
    def misname(key: str) -> str:
        plain = key.removeprefix("base_model.model.")
        return change.format(plain) if "{" in change else plain.replace("layers.2", change)

    rename(copy / WEIGHTS_FILE, misname)
    message = refusal(UnsupportedError, small, copy)
    assert "another base" not in message
    assert message.endswith("does not; save it again with save_pretrained")


# -- bases --


@pytest.mark.parametrize("spelling", list(SPELLINGS)[:-2])
def test_wrappers_part_in_a_bases_names_is_taken_out(
    small: Path, base: Path, spelling: str
) -> None:
    rename(base / SINGLE_FILE, lambda key: SPELLINGS[spelling](f"model.{key}"))
    require_equal(Checkpoint.open(base), model_of(small).state_dict())


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
@pytest.mark.parametrize("kind", [transformers.MistralModel, transformers.MistralForCausalLM])
def test_base_saved_wrapped_by_state_dict_is_the_base(
    small: Path,
    base: Path,
    wrap: Callable[[torch.nn.Module], torch.nn.Module],
    kind: type[transformers.PreTrainedModel],
) -> None:
    save(wrap(kind.from_pretrained(small, dtype=torch.float32)), base / SINGLE_FILE)
    require_equal(Checkpoint.open(base), model_of(small).state_dict())


def model_of(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)


def test_bases_names_that_fit_nothing_are_refused_as_names(base: Path) -> None:
    rename(base / SINGLE_FILE, lambda key: f"encoder.{key}")
    message = refusal(MissingError, base)
    assert "names of no such model: encoder.embed_tokens.weight and 28 more" in message
    assert "download" not in message


# -- DeepSpeed's ZeRO-3 --


def empty(path: Path, key: str) -> None:
    save_file(load_file(path) | {key: torch.empty(0)}, path)


def test_empty_tensor_of_a_base_is_refused_as_zero_3s(base: Path) -> None:
    empty(base / SINGLE_FILE, f"{MODULE}.weight")
    message = refusal(DamagedError, base)
    assert f"found it empty in {base / SINGLE_FILE}: DeepSpeed ZeRO-3" in message


@pytest.mark.parametrize("tensor", [f"{MODULE}.lora_A.weight", "norm.weight"])
def test_empty_tensor_of_an_adapter_is_refused_as_zero_3s(copy: Path, tensor: str) -> None:
    empty(copy / WEIGHTS_FILE, f"base_model.model.{tensor}")
    message = refusals.refusal(DamagedError, lambda: read_adapter(copy))
    assert f"found it empty in {copy / WEIGHTS_FILE}: DeepSpeed ZeRO-3" in message
