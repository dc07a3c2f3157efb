"""Bad input: one clear line, exit code 2, and nothing written."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import pytest
from anna_train.cli import cli as train_cli
from anna_train.cli import run as run_train

from anna_export.artifact.folder import Artifact
from anna_export.cli import cli, run
from anna_export.spec import Precision
from tests.support.folders import edit_json
from tests.support.types import Refused

MakeFolder = Callable[..., Path]


@pytest.fixture
def copy(tmp_path: Path) -> MakeFolder:
    """Copies a folder, to damage it."""

    def copied(folder: Path, name: str = "copy") -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    return copied


def cut(path: Path, size_bytes: int) -> None:
    os.truncate(path, path.stat().st_size - size_bytes)


# -- models --


@pytest.mark.parametrize("verb", ["export", "plan", "merge"])
@pytest.mark.parametrize("name", ["model", "adapter"])
def test_missing_folder_is_named(
    base: Path, adapter: Path, tmp_path: Path, root: Path, refused: Refused, verb: str, name: str
) -> None:
    folders = {"model": base, "adapter": adapter, name: tmp_path / "nowhere"}
    options = [word for key, folder in folders.items() for word in (f"--{key}", folder)]
    line = refused(verb, *options, "--out", root / "out")
    assert line == (
        f"expected a folder, found none at {tmp_path / 'nowhere'}; models, adapters and artifacts "
        "are read from disk"
    )


def test_model_that_is_a_file_is_refused(base: Path, root: Path, refused: Refused) -> None:
    file = base / "model.safetensors"
    line = refused("--model", file, "--out", root / "out")
    assert line == f"expected a folder, found a file at {file}; name the folder it is in"


def test_other_kind_of_model_is_refused(
    base: Path, root: Path, refused: Refused, copy: MakeFolder
) -> None:
    model = copy(base)
    edit_json(model / "config.json", lambda config: config.update(model_type="bert"))
    line = refused("--model", model, "--out", root / "out")
    assert "found 'bert', an encoder, not a decoder, in" in line


def test_folder_without_a_model_is_refused(tmp_path: Path, root: Path, refused: Refused) -> None:
    line = refused("--model", tmp_path, "--out", root / "out")
    assert line.startswith(f"expected the file {tmp_path / 'config.json'}, found none; is ")


def test_missing_shard_is_named(make_model: MakeFolder, root: Path, refused: Refused) -> None:
    model = make_model(shard="2MB")
    (model / "model-00002-of-00002.safetensors").unlink()
    line = refused("--model", model, "--out", root / "out")
    assert "found no model-00002-of-00002.safetensors in" in line
    assert line.endswith("download the model again")


@pytest.mark.parametrize("size_bytes", [1, 5_000_000])
def test_truncated_weights_are_named(
    base: Path, root: Path, refused: Refused, copy: MakeFolder, size_bytes: int
) -> None:
    model = copy(base)
    cut(model / "model.safetensors", size_bytes)
    line = refused("--model", model, "--out", root / "out")
    assert f"{model / 'model.safetensors'} is truncated" in line


def test_weights_that_are_no_safetensors_are_named(
    base: Path, root: Path, refused: Refused, copy: MakeFolder
) -> None:
    model = copy(base)
    (model / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    line = refused("--model", model, "--out", root / "out")
    assert line.startswith("expected a safetensors file, found something else in ")


def test_pickled_weights_are_refused(
    base: Path, root: Path, refused: Refused, copy: MakeFolder
) -> None:
    model = copy(base)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    line = refused("--model", model, "--out", root / "out")
    assert "found .bin: pickle files can run code and are not read; convert with" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_unreadable_model_is_named(
    base: Path, root: Path, refused: Refused, copy: MakeFolder
) -> None:
    model = copy(base)
    model.chmod(0)
    try:
        assert "Permission denied" in refused("--model", model, "--out", root / "out")
    finally:
        model.chmod(0o755)


# -- adapters --


@pytest.mark.parametrize("verb", ["export", "plan", "merge"])
def test_adapter_of_another_base_is_refused(
    base: Path,
    make_model: MakeFolder,
    make_adapter: MakeFolder,
    root: Path,
    refused: Refused,
    verb: str,
) -> None:
    wider = make_model(hidden_size=48)
    other = make_adapter(wider, target_modules=["q_proj"])
    line = refused(verb, "--model", base, "--adapter", other, "--out", root / "out")
    assert "expected (96, 40) for layers.0.self_attn.q_proj.weight, found (96, 48)" in line
    assert line.endswith(f"this adapter is for another base model, made for {wider}")


def test_adapter_with_a_target_the_base_lacks_is_refused(
    base: Path, make_model: MakeFolder, make_adapter: MakeFolder, root: Path, refused: Refused
) -> None:
    deeper = make_model(num_hidden_layers=4)
    other = make_adapter(deeper, target_modules=["q_proj"])
    line = refused("--model", base, "--adapter", other, "--out", root / "out")
    assert "found layers.3.self_attn.q_proj in" in line
    assert line.endswith(f"this adapter is for another base model, made for {deeper}")


def test_dora_is_refused_by_name(
    base: Path, make_adapter: MakeFolder, root: Path, refused: Refused
) -> None:
    dora = make_adapter(base, use_dora=True, target_modules=["q_proj"])
    line = refused("--model", base, "--adapter", dora, "--out", root / "out")
    assert line.startswith("expected plain LoRA, found DoRA (use_dora) in ")
    assert line.endswith("merge it with peft and export the merged model")


def test_folder_that_is_no_adapter_is_refused(base: Path, root: Path, refused: Refused) -> None:
    line = refused("--model", base, "--adapter", base, "--out", root / "out")
    assert line == (
        f"expected the file {base / 'adapter_config.json'}, found none; it holds a model: give it "
        "as --model"
    )


# -- outputs --


@pytest.mark.parametrize("verb", ["export", "merge"])
def test_output_that_exists_is_refused(
    base: Path, adapter: Path, root: Path, refused: Refused, verb: str
) -> None:
    command = [verb, "--model", base, "--adapter", adapter, "--out"]
    line = refused(*command, root / "taken")
    assert line == f"expected {root / 'taken'} to be free, found it there; --overwrite replaces it"
    line = refused(*command, root / "taken", "--overwrite")
    assert "remove that folder yourself if it may go" in line
    for name in ("file", "file/below"):
        assert "found a file" in refused(*command, root / name)


def test_output_of_embed_that_exists_is_refused(
    artifact: Artifact, tmp_path: Path, root: Path, refused: Refused
) -> None:
    (root / "v.npy").write_text("")
    line = refused("embed", artifact.folder, tmp_path / "nowhere.txt", "--out", root / "v.npy")
    assert line == f"expected {root / 'v.npy'} to be free, found it there; --overwrite replaces it"


# -- options --


@pytest.mark.parametrize("flag", ["--fp12", "--int2", "--bf8"])
@pytest.mark.parametrize("verb", [[], ["export"]], ids=["no verb", "export"])
def test_unknown_precision_is_refused_with_those_there_are(
    base: Path, root: Path, refused: Refused, flag: str, verb: list[str]
) -> None:
    line = refused(*verb, flag, "--model", base, "--out", root / "out")
    assert f"found {flag};" in line
    assert all(f"--{precision}," in line for precision in Precision)


def test_several_precisions_are_refused(base: Path, root: Path, refused: Refused) -> None:
    line = refused("--model", base, "--out", root / "out", "--bf16", "--fp16")
    assert line == "expected one precision, found --fp16 and --bf16; give one"


@pytest.mark.parametrize("tokens", ["7", "0", "-1", "8193", "99999999999999999999"])
@pytest.mark.parametrize("verb", ["export", "plan"])
def test_max_tokens_out_of_range_is_refused(
    base: Path, root: Path, refused: Refused, verb: str, tokens: str
) -> None:
    line = refused(verb, "--model", base, "--out", root / "out", "--max-tokens", tokens)
    assert line == (
        f"expected max tokens between 8 and the model's 8192 positions, found {int(tokens)}"
    )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (
            ["exprot"],
            "expected a command of export, plan, merge, build, verify, bench, report, embed, "
            "serve, package, inspect, "
            "prompts, found",
        ),
        (["prompts", "edit"], "expected a command of list, add, remove, found 'edit'"),
        (["plan"], "expected --model, found none; see anna-export plan --help"),
        (["inspect"], "expected ARTIFACT, found none; see anna-export inspect --help"),
        (["--out", "x"], "expected --model, found none; see anna-export export --help"),
        (["plan", "--model"], "Option '--model' requires an argument"),
        (["plan", "--max-tokens", "many"], "is not a valid integer; see anna-export plan --help"),
        (["plan", "one", "two"], "see anna-export plan --help"),
    ],
)
def test_wrong_use_says_what_was_expected(refused: Refused, args: list[str], expected: str) -> None:
    assert expected in refused(*args)


# -- options given twice --


def single_options(group: click.Group, names: Sequence[str] = ()) -> Iterator[tuple[str, ...]]:
    """Every command's options of one value: its words, then the option's spelling."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from single_options(command, [*names, name])
            continue
        for option in command.params:
            if isinstance(option, click.Option) and not (option.is_flag or option.multiple):
                yield *names, name, option.opts[0]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        pytest.param(program, words, id=" ".join(words))
        for group, program in ((cli, run), (train_cli, run_train))
        for words in single_options(group)
    ],
)
def test_option_of_one_value_that_is_given_twice_is_refused(
    capsys: pytest.CaptureFixture[str], program: Callable[..., int], words: tuple[str, ...]
) -> None:
    *verb, option = words
    assert program([*verb, option, "1", option, "2"]) == 2
    line = capsys.readouterr().err
    assert f": expected {option} once, found it 2 times; give one; see " in line
    assert line.count("\n") == 1


def test_option_given_twice_under_two_names_is_refused(refused: Refused, base: Path) -> None:
    line = refused("verify", "artifact", "--model", base, "--reference", base)
    assert line.startswith("expected --model once, found it 2 times")


def test_flag_may_stand_twice(artifact: Artifact) -> None:
    assert run(["inspect", str(artifact.folder), "--json", "--json"]) == 0


# -- artifacts --


@pytest.fixture
def on_artifact(base: Path, root: Path, tmp_path: Path) -> Callable[[str, Path], list[object]]:
    """The words of a command of each verb that reads an artifact."""
    (tmp_path / "texts.txt").write_text("a\n")

    def words(verb: str, folder: Path) -> list[object]:
        more: dict[str, list[object]] = {
            "inspect": [],
            "verify": ["--reference", base],
            "embed": [tmp_path / "texts.txt", "--out", root / "v.npy"],
        }
        return [verb, folder, *more[verb]]

    return words


@pytest.mark.parametrize("verb", ["inspect", "verify", "embed"])
def test_artifact_that_is_none_is_refused(
    base: Path,
    artifact: Artifact,
    refused: Refused,
    copy: MakeFolder,
    on_artifact: Callable[[str, Path], list[object]],
    verb: str,
) -> None:
    line = refused(*on_artifact(verb, base))
    assert line.startswith(f"expected an artifact, found no manifest.json in {base}; name a folder")
    damaged = copy(artifact.folder)
    cut(damaged / "model.onnx.data", 1)
    line = refused(*on_artifact(verb, damaged))
    assert "found model.onnx.data (" in line and line.endswith("copy or export it again")


def test_reference_of_other_dimensions_is_refused(
    artifact: Artifact, make_model: MakeFolder, refused: Refused
) -> None:
    other = make_model(hidden_size=48)
    line = refused("verify", artifact.folder, "--reference", other)
    assert line.startswith("expected a reference with dim 40, as the artifact has, found 48 in ")


# -- texts --


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("texts.csv", b"a", "expected texts in .txt or .jsonl, found texts.csv"),
        ("texts.txt", b"", "expected at least one text, found none in "),
        ("texts.txt", b"ok\n\xff\n", "expected UTF-8, found 'utf-8' codec can't decode byte 0xff"),
        ("texts.jsonl", b'{"text": "a"}\n{"text"\n', "expected JSON, found "),
        ("texts.jsonl", b'{"body": "a"}\n', "expected a text under 'text', found {"),
        ("texts.jsonl", b'{"text": "\xff"}\n', "expected UTF-8, found "),
    ],
)
def test_texts_that_cannot_be_read_are_refused(
    artifact: Artifact,
    tmp_path: Path,
    root: Path,
    refused: Refused,
    name: str,
    content: bytes,
    expected: str,
) -> None:
    (tmp_path / name).write_bytes(content)
    line = refused("embed", artifact.folder, tmp_path / name, "--out", root / "v.npy")
    assert line.startswith(expected) and name in line


@pytest.mark.parametrize(
    ("more", "out", "expected"),
    [
        (["--prompt", "qurey"], "v.npy", "expected a known prompt (none), found 'qurey'"),
        ([], "v.csv", "expected vectors in .parquet or .npy, found v.csv"),
        ([], "nowhere/v.npy", "expected the folder {root}/nowhere for v.npy, found none; make it"),
        (["--device", "tpu"], "v.npy", "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
    ],
)
def test_embed_refuses_what_it_cannot_do(
    artifact: Artifact,
    tmp_path: Path,
    root: Path,
    refused: Refused,
    more: list[str],
    out: str,
    expected: str,
) -> None:
    (tmp_path / "texts.txt").write_text("a\n")
    words = ["embed", artifact.folder, tmp_path / "texts.txt", "--out", root / out, *more]
    assert expected.format(root=root) in refused(*words)


def test_missing_texts_are_named(
    artifact: Artifact, tmp_path: Path, root: Path, refused: Refused
) -> None:
    missing = tmp_path / "nowhere.txt"
    line = refused("embed", artifact.folder, missing, "--out", root / "v.npy")
    assert line == f"expected a file of texts, found none at {missing}"
