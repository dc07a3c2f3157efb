"""A folder that is not the one meant: the line names the one that is."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from anna_export.artifact.manifest import read_manifest
from anna_export.errors import AnnaError, MissingError, UnsupportedError
from anna_export.files.model_folders import ADAPTER, MODEL, require_file, require_folder
from tests.support.refusals import refusal

KEYS = {ADAPTER: "peft_type", MODEL: "model_type"}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder with files of these names, each marked as what its name says."""

    def fill(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({KEYS.get(path.name, "other"): "any"}))
        return tmp_path

    return fill


def refused(folder: Path, name: str, kind: type[AnnaError] = MissingError) -> str:
    message = refusal(kind, lambda: require_file(folder, name))
    return message.removeprefix(f"expected the file {folder / name}, found none; ")


@pytest.mark.parametrize("name", KEYS)
def test_the_folder_itself_is_taken(make: Callable[..., Path], name: str) -> None:
    folder = make(name, f"checkpoint-500/{name}", "params.json")
    assert require_file(folder, name) == folder / name


def test_checkpoints_of_a_training_are_named_in_their_order(make: Callable[..., Path]) -> None:
    folder = make(*(f"checkpoint-{step}/{ADAPTER}" for step in (1000, 500)), "README.md")
    assert refused(folder, ADAPTER) == (
        "these folders in it have one: checkpoint-500, checkpoint-1000; name one of them"
    )


def test_many_checkpoints_are_not_all_listed(make: Callable[..., Path]) -> None:
    folder = make(*(f"checkpoint-{step}/{ADAPTER}" for step in range(1, 8)))
    assert ", checkpoint-5, …; name one" in refused(folder, ADAPTER)


def test_folder_of_a_named_adapter_is_named(make: Callable[..., Path]) -> None:
    folder = make(f"code_search/{ADAPTER}")
    assert refused(folder, ADAPTER) == f"name {folder / 'code_search'}, which has one"


def test_transformer_of_an_old_sentence_transformer_is_named(make: Callable[..., Path]) -> None:
    folder = make("modules.json", f"0_Transformer/{MODEL}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / MODEL).write_text('{"pooling_mode_lasttoken": true}')
    assert refused(folder, MODEL) == f"name {folder / '0_Transformer'}, which has one"


@pytest.mark.parametrize("name", KEYS)
def test_snapshot_in_the_hubs_cache_is_named(make: Callable[..., Path], name: str) -> None:
    folder = make("refs/main", f"snapshots/3f9a/{name}")
    assert refused(folder, name) == f"name {folder / 'snapshots/3f9a'}, which has one"
    assert refused(folder / "snapshots", name) == f"name {folder / 'snapshots/3f9a'}, which has one"


def test_artifacts_in_a_folder_are_listed_as_models_are(make: Callable[..., Path]) -> None:
    folder = make("fp32/manifest.json", "int8/manifest.json")
    with pytest.raises(MissingError, match="these folders in it have one: fp32, int8; name one"):
        read_manifest(folder)


def test_adapter_given_as_the_model_is_told(make: Callable[..., Path]) -> None:
    assert refused(make(ADAPTER), MODEL) == "it holds an adapter: give it as `adapter`"


def test_model_given_as_the_adapter_is_told(make: Callable[..., Path]) -> None:
    assert refused(make(MODEL), ADAPTER) == "it holds a model: give it as `model`"


def test_adapter_of_mistral_finetune_is_told(make: Callable[..., Path]) -> None:
    message = refused(make("lora.safetensors", "params.json"), ADAPTER, UnsupportedError)
    assert "found mistral-finetune's own layout (lora.safetensors, params.json)" in message


def test_model_in_mistrals_own_layout_is_told(make: Callable[..., Path]) -> None:
    message = refused(make("consolidated.safetensors", "params.json"), MODEL, UnsupportedError)
    assert "found Mistral's own layout (params.json, consolidated weights)" in message


@pytest.mark.parametrize("name", KEYS)
def test_folder_with_nothing_of_the_kind_is_asked_for(make: Callable[..., Path], name: str) -> None:
    folder = make("sub/other.json")
    assert refused(folder, name) == f"is {folder} the right folder?"


def missing(name: str) -> str:
    return refusal(MissingError, lambda: require_folder(Path(name)))


@pytest.mark.parametrize("address", ["", "huggingface.co/", "https://huggingface.co/"])
def test_repository_of_the_hub_is_told_how_it_is_downloaded(address: str) -> None:
    message = missing(address + "intfloat/e5-mistral-7b-instruct")
    assert message.endswith(
        "download it with hf download intfloat/e5-mistral-7b-instruct --local-dir "
        "e5-mistral-7b-instruct, and name the folder e5-mistral-7b-instruct"
    )


def test_download_command_is_one_that_the_hubs_client_knows() -> None:
    program, verb, _, option, _ = (
        missing("a/b").partition("download it with ")[2].partition(",")[0].split()
    )
    text = subprocess.run(
        [Path(sys.executable).with_name(program), verb, "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert option in text.split() and "REPO_ID" in text


@pytest.mark.parametrize("name", ["mistral", "/models/b", "~/b", "a/b/c", "../a", "-a/b"])
def test_path_that_is_no_repositorys_name_is_none(name: str) -> None:
    assert missing(name).endswith("models, adapters and artifacts are read from disk")


def test_folder_beside_which_others_lie_is_a_typing_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mistral").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "Hub" not in missing("models/mistrl")
    require_folder(Path("models/mistral"))
