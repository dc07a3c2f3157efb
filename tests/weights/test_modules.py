"""What stands behind a decoder is read as sentence-transformers reads it, or refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from anna_export.artifact.folder import Artifact
from anna_export.errors import AnnaError, DamagedError, InputError, MissingError, UnsupportedError
from anna_export.spec import LAST_TOKEN, Activation, Dense, Head, PoolingMode, Similarity
from anna_export.text.prompts import PROMPTS_FILE
from anna_export.text.st_files import MODULES_FILE
from anna_export.weights.checkpoint import Checkpoint
from anna_export.weights.modules import read_modules
from tests.support.folders import edit_json
from tests.support.refusals import refusal
from tests.support.st_folders import dense, save_st

HIDDEN = 40


@pytest.fixture(scope="module")
def headed(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pooling, two Dense modules and Normalize behind a model, as sentence-transformers saves."""
    layers = [dense(HIDDEN, 24), dense(24, 30, torch.nn.Identity(), bias=False)]
    return save_st(small, tmp_path_factory.mktemp("st") / "headed", "mean", layers=layers)


@pytest.fixture
def folder(headed: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(headed, tmp_path / "model"))


def edit_modules(folder: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    path = folder / MODULES_FILE
    modules = json.loads(path.read_text())
    change(modules)
    path.write_text(json.dumps(modules))


# -- what is read --


def test_modules_are_read_in_their_order(headed: Path) -> None:
    assert read_modules(headed).head == Head(
        PoolingMode.MEAN,
        dense=(
            Dense(HIDDEN, 24, True, Activation.TANH),
            Dense(24, 30, False, Activation.IDENTITY),
        ),
    )


def test_folder_without_modules_is_last_token_of_unit_length(small: Path) -> None:
    modules = read_modules(small)
    assert modules.head == LAST_TOKEN and modules.folder is None and not modules.files


def test_adapters_modules_come_before_the_models(small: Path, headed: Path, tmp_path: Path) -> None:
    tuned = save_st(small, tmp_path / "tuned", "cls", normalize=False)
    head = Head(PoolingMode.CLS, normalize=False)
    assert read_modules(headed, tuned).head == head
    assert read_modules(tuned, headed).head == read_modules(headed).head
    assert read_modules(tuned, small).head == head


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling_mode": "cls"},
        {"pooling_mode": ["lasttoken"]},
        {"include_prompt": False},
        {"pooling_mode_mean_tokens": False},
        {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False},
        {"pooling_mode_cls_token": True, "pooling_mode": "mean"},
    ],
    ids=str,
)
def test_pooling_is_what_the_library_reads(headed: Path, folder: Path, settings: dict) -> None:
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"word_embedding_dimension": HIDDEN, **settings}))
    library = Pooling.load(str(folder), subfolder="1_Pooling")
    head = read_modules(folder).head
    assert (head.pooling, head.include_prompt) == (library.pooling_mode, library.include_prompt)


@pytest.mark.parametrize(
    "kind",
    [
        "sentence_transformers.models.Pooling",
        "sentence_transformers.models.Pooling.Pooling",
        "sentence_transformers.sentence_transformer.modules.Pooling",
    ],
)
def test_import_paths_old_and_new_are_the_same_module(folder: Path, kind: str) -> None:
    before = read_modules(folder).head
    edit_modules(folder, lambda modules: modules[1].update(type=kind))
    assert read_modules(folder).head == before


@pytest.mark.parametrize("activation", [torch.nn.ReLU(), torch.nn.GELU(), torch.nn.SiLU()], ids=str)
def test_activation_is_the_saved_one(
    small: Path, tmp_path: Path, activation: torch.nn.Module
) -> None:
    folder = save_st(small, tmp_path / "st", layers=[dense(HIDDEN, 8, activation)])
    (layer,) = read_modules(folder).head.dense
    assert layer.activation == type(activation).__name__.lower()


def test_activation_that_is_not_named_is_tanh(folder: Path) -> None:
    edit_json(folder / "3_Dense" / "config.json", lambda json: json.pop("activation_function"))
    assert SentenceTransformer(str(folder))[3].activation_function.__class__ is torch.nn.Tanh
    assert read_modules(folder).head.dense[1].activation == Activation.TANH


def test_dropout_does_nothing(folder: Path) -> None:
    before = read_modules(folder).head
    entry = {"name": "d", "path": "9_Dropout", "type": "sentence_transformers.models.Dropout"}
    edit_modules(folder, lambda modules: modules.insert(2, entry))
    assert read_modules(folder).head == before


@pytest.mark.parametrize("similarity", Similarity)
def test_similarity_is_the_saved_one(folder: Path, similarity: Similarity) -> None:
    edit_json(folder / PROMPTS_FILE, lambda json: json.update(similarity_fn_name=similarity))
    assert read_modules(folder).similarity is similarity


def test_dense_weights_belong_to_the_checkpoint(headed: Path) -> None:
    checkpoint = Checkpoint.open(headed)
    for index in (0, 1):
        stored = load_file(headed / f"{index + 2}_Dense" / "model.safetensors")
        for name, tensor in stored.items():
            read = checkpoint.read(f"head.dense.{index}.{name.split('.')[1]}", torch.float32)
            assert read.equal(tensor)
    assert checkpoint.spec.embedding_dim == 30
    assert {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"} <= set(
        checkpoint.source_hashes()
    )


# -- what is refused --


def mode(*modes: str) -> dict[str, object]:
    return {"embedding_dimension": HIDDEN, "pooling_mode": modes[0] if len(modes) == 1 else modes}


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("1_Pooling", mode("max"), "1_Pooling to be one of lasttoken, mean, cls, found max"),
        ("1_Pooling", mode("weightedmean"), "found weightedmean"),
        ("1_Pooling", mode("mean_sqrt_len_tokens"), "found mean_sqrt_len_tokens"),
        ("1_Pooling", mode("cls", "mean"), "found cls and mean"),
        ("1_Pooling", {"pooling_mode_max_tokens": True}, "found max"),
        ("1_Pooling", mode("mean") | {"scale": 2}, "found scale"),
        ("2_Dense", {"use_residual": True}, "found use_residual"),
        ("2_Dense", {"activation_function": "torch.nn.modules.activation.ELU"}, "activation.ELU"),
        ("2_Dense", {"activation_function": "mine.Tanh"}, "found mine.Tanh"),
        ("2_Dense", {"module_input_name": "token_embeddings"}, "found 'token_embeddings'"),
        ("2_Dense", {"module_output_name": "other"}, "found 'other'"),
        ("2_Dense", {"in_features": 41}, "expected 40 as in_features"),
        ("3_Dense", {"in_features": 23}, "expected 24 as in_features"),
        ("4_Normalize", {"module_input_name": "token_embeddings"}, "found 'token_embeddings'"),
    ],
)
def test_setting_that_is_not_computed_is_refused_with_its_file(
    folder: Path, file: str, content: dict[str, Any], named: str
) -> None:
    path = folder / file / "config.json"
    if file == "1_Pooling":
        path.write_text(json.dumps(content))
    else:
        edit_json(path, lambda json: json.update(content))
    message = refusal(UnsupportedError, lambda: Checkpoint.open(folder))
    assert named in message and str(path) in message


ROUTER = "sentence_transformers.base.modules.router.Router"
LAYER_NORM = "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda modules: modules[0].update(type=ROUTER), "Router"),
        (lambda modules: modules[2].update(type=LAYER_NORM), "LayerNorm (2_Dense)"),
        (lambda modules: modules[2].update(type="pylate.models.Dense"), "pylate.models.Dense"),
        (lambda modules: modules.pop(1), "Dense (2_Dense)"),
        (lambda modules: modules.insert(1, modules.pop(2)), "Dense (2_Dense)"),
        (lambda modules: modules.insert(2, modules.pop(4)), "Normalize (4_Normalize)"),
        (lambda modules: modules.append(modules[4]), "Normalize (4_Normalize)"),
        (lambda modules: modules.append(modules[1]), "Pooling (1_Pooling)"),
        (lambda modules: modules.__delitem__(slice(1, None)), "no Pooling"),
        (lambda modules: modules.clear(), "no module"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_module_that_is_not_computed_is_refused_by_its_name_and_file(
    folder: Path, change: Callable[[list], object], named: str
) -> None:
    edit_modules(folder, change)
    message = refusal(UnsupportedError, lambda: Checkpoint.open(folder))
    assert named in message and str(folder / MODULES_FILE) in message


def test_artifact_given_as_a_model_is_refused_by_name(artifact: Artifact) -> None:
    message = refusal(UnsupportedError, lambda: Checkpoint.open(artifact.folder))
    assert "anna_export.st.AnnaEncoder" in message and "the model that it was made from" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transformer_task", "text-generation"),
        ("module_output_name", "sentence_embedding"),
        ("modality_config", {"message": {"method": "forward"}}),
        ("processing_kwargs", {"text": {"padding": "max_length"}}),
        ("do_lower_case", True),
        ("query_length", 16),
        ("query_expansion", {"strategy": "fixed", "length": 32}),
        ("tokenizer_args", {"use_fast": False}),
    ],
)
def test_setting_of_the_decoder_that_changes_vectors_is_refused(
    folder: Path, key: str, value: object
) -> None:
    path = folder / "sentence_bert_config.json"
    edit_json(path, lambda json: json.update({key: value}))
    message = refusal(UnsupportedError, lambda: Checkpoint.open(folder))
    assert key in message and str(path) in message


@pytest.mark.parametrize(("key", "value"), [("truncate_dim", 16), ("similarity_fn_name", "maxsim")])
def test_setting_of_the_vectors_that_is_not_honoured_is_refused(
    folder: Path, key: str, value: object
) -> None:
    edit_json(folder / PROMPTS_FILE, lambda json: json.update({key: value}))
    message = refusal(UnsupportedError, lambda: Checkpoint.open(folder))
    assert key in message and str(folder / PROMPTS_FILE) in message


def test_pickled_dense_weights_are_refused(folder: Path) -> None:
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    message = refusal(UnsupportedError, lambda: Checkpoint.open(folder))
    assert ".bin" in message and "2_Dense" in message


@pytest.mark.parametrize(
    ("name", "kind"),
    [("1_Pooling/config.json", MissingError), ("2_Dense/model.safetensors", MissingError)],
)
def test_file_of_a_module_that_is_missing_is_named(
    folder: Path, name: str, kind: type[AnnaError]
) -> None:
    (folder / name).unlink()
    assert name in refusal(kind, lambda: Checkpoint.open(folder))


def test_dense_weights_of_another_bias_are_refused(folder: Path) -> None:
    edit_json(folder / "2_Dense" / "config.json", lambda json: json.update(bias=False))
    assert "found linear.bias, linear.weight" in refusal(
        MissingError, lambda: Checkpoint.open(folder)
    )


def test_first_modules_folder_alone_is_refused(headed: Path, tmp_path: Path) -> None:
    part = Path(shutil.copytree(headed, tmp_path / "0_Transformer"))
    (part / MODULES_FILE).rename(tmp_path / MODULES_FILE)
    assert "expected a whole model" in refusal(InputError, lambda: Checkpoint.open(part))


def test_decoder_in_a_folder_of_its_own_is_refused(folder: Path) -> None:
    (folder / "0_Transformer").mkdir()
    edit_modules(folder, lambda modules: modules[0].update(path="0_Transformer"))
    message = refusal(UnsupportedError, lambda: Checkpoint.open(folder))
    assert "found them in 0_Transformer" in message


@pytest.mark.parametrize("entry", [{}, {"path": ""}, 3, {"type": 3, "path": ""}], ids=str)
def test_entry_without_a_class_is_refused(folder: Path, entry: object) -> None:
    edit_modules(folder, lambda modules: modules.append(entry))  # type: ignore[arg-type]
    assert "expected a class" in refusal(DamagedError, lambda: Checkpoint.open(folder))
