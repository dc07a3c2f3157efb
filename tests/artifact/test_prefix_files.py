"""Prefixes as files: what is stored, when it is read, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from anna_export import open_encoder
from anna_export.artifact import prefixes
from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import FileEntry, hash_file
from anna_export.cli import run
from anna_export.encoder import Encoder
from anna_export.errors import DamagedError, SpaceError
from anna_export.export import bake as baking
from anna_export.spec import Precision
from anna_export.verify.texts import long_text
from tests.support.types import MakeArtifact, MakeModel

LAYERS, KV_HEADS, HEAD_DIM = 3, 2, 16
TASKS = {
    "few": {"text": f"{long_text(20)}: "},
    "more": {"text": f"{long_text(40)}: "},
    "again": {"text": f"{long_text(20)}: "},
}


def write_prompts(path: Path, tasks: dict[str, dict[str, str]]) -> Path:
    path.write_text(json.dumps({"tasks": tasks}))
    return path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.json", TASKS)


@pytest.fixture(scope="module")
def original(base: Path, make_artifact: MakeArtifact, prompts: Path) -> Path:
    return make_artifact(base, max_tokens=256, prompts=prompts).folder


@pytest.fixture
def artifact(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "artifact"))


# -- what is stored --


def test_file_holds_keys_and_values_of_the_ids_in_the_manifest(original: Path) -> None:
    opened = open_artifact(original, check=True)
    for name, entry in opened.manifest.prefixes.items():
        prompt = opened.manifest.prompts.by_name[name]
        assert entry.file == f"prefixes/{name}.safetensors" and entry.exact
        assert entry.ids == opened.tokeniser().prefix_ids(prompt) and len(entry.ids) > 20
        assert entry.prompt == opened.manifest.prompts.hashes()[name]
        tensors = safetensors.torch.load_file(original / entry.file)
        shape = (LAYERS, KV_HEADS, len(entry.ids), HEAD_DIM)
        assert {name: (x.dtype, tuple(x.shape)) for name, x in tensors.items()} == {
            "keys": (torch.float32, shape),
            "values": (torch.float32, shape),
        }


def test_exports_bake_the_same_bytes_again(
    base: Path, original: Path, prompts: Path, tmp_path: Path
) -> None:
    args = ["--model", base, "--out", tmp_path / "out", "--prompts", prompts, "--no-verify"]
    assert run([*map(str, args), "--max-tokens", "256"]) == 0
    again, first = open_artifact(tmp_path / "out").manifest, open_artifact(original).manifest
    assert again.prefixes == first.prefixes and set(first.prefixes) == set(TASKS)


def test_two_names_of_one_prompt_have_a_file_each_and_are_computed_once(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = open_artifact(original).manifest.prefixes
    assert entries["few"].sha256 == entries["again"].sha256
    assert entries["few"].file != entries["again"].file


def test_prompt_of_a_sentence_transformers_model_may_have_any_name(
    make_model: MakeModel, make_artifact: MakeArtifact
) -> None:
    model = make_model()
    names = {"STS 2017/../en": "Find like sentences: ", "query": "Query: "}
    (model / "config_sentence_transformers.json").write_text(json.dumps({"prompts": names}))
    artifact = make_artifact(model)
    files = {entry.file for entry in artifact.manifest.prefixes.values()}
    assert "prefixes/query.safetensors" in files and len(files) == 2
    folders = {path.parent.name for path in artifact.folder.rglob("*.safetensors")}
    assert folders == {"prefixes"}
    assert open_encoder(artifact.folder).encode("a", "STS 2017/../en").shape == (40,)


def test_size_of_an_artifact_counts_its_prefixes(original: Path) -> None:
    manifest = open_artifact(original).manifest
    stored = sum(entry.size_bytes for entry in manifest.files.values())
    baked = sum((original / entry.file).stat().st_size for entry in manifest.prefixes.values())
    assert open_artifact(original).size_bytes == stored + baked


# -- when it is read --


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the prefix files that are hashed or read, in their order."""
    names: list[str] = []
    real = prefixes._read

    def watched(*args: object) -> object:
        names.append(args[1].file)  # type: ignore[attr-defined]
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(prefixes, "_read", watched)
    return names


def test_prefix_is_read_at_its_first_use_and_once(artifact: Path, read: list[str]) -> None:
    encoder = open_encoder(artifact)
    encoder.encode(["no prompt"])
    assert read == []
    for _ in range(3):
        encoder.encode(["a", "b"], "more")
    assert read == ["prefixes/more.safetensors"]
    # one copy of two names
    encoder.encode(["a", "b"], ["few", "again"])
    assert len(read) == 2


def test_all_texts_of_a_prompt_share_one_copy(artifact: Path) -> None:
    encoder = open_encoder(artifact)
    rows = encoder.tokenise(["a", "b", "c"], encoder.prompts.find("few"))
    assert len({id(row.prefix) for row in rows}) == 1
    assert encoder.tokenise(["d"], encoder.prompts.find("few"))[0].prefix is rows[0].prefix


def test_opening_hashes_no_prefix(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def watched(path: Path) -> FileEntry:
        hashed.append(path.name)
        return hash_file(path)

    for module in ("folder", "manifest", "prefixes"):
        monkeypatch.setattr(f"anna_export.artifact.{module}.hash_file", watched)
    open_artifact(artifact)
    assert "model.onnx" in hashed and not any(name.endswith("safetensors") for name in hashed)
    open_artifact(artifact, check=True)
    assert "few.safetensors" in hashed


# -- what is refused --


def test_missing_or_cut_file_is_found_when_the_artifact_is_opened(artifact: Path) -> None:
    path = artifact / "prefixes" / "few.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DamagedError, match=r"prefixes/few.safetensors \(\d+ bytes, not \d+\)"):
        open_artifact(artifact)
    path.unlink()
    with pytest.raises(DamagedError, match=r"prefixes/few.safetensors \(missing\)"):
        open_artifact(artifact)


def test_changed_file_is_found_at_its_first_use_or_by_check(artifact: Path) -> None:
    path = artifact / "prefixes" / "more.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"more.safetensors \(other content\)"):
        open_artifact(artifact, check=True)
    encoder = open_encoder(artifact)
    assert encoder.encode(["a"], "few").shape == (1, 40)
    with pytest.raises(DamagedError, match=r"more.safetensors .*found another or none; bake it"):
        encoder.encode(["a"], "more")


def test_file_of_another_model_is_named_as_that(
    artifact: Path, make_model: MakeModel, make_artifact: MakeArtifact, prompts: Path
) -> None:
    other = make_artifact(make_model(seed=9), max_tokens=256, prompts=prompts)
    shutil.copy(other.folder / "prefixes" / "more.safetensors", artifact / "prefixes")
    with pytest.raises(DamagedError, match="made for another model or tokenizer") as error:
        open_encoder(artifact).encode(["a"], "more")
    assert other.manifest.artifact_id in str(error.value)


def test_prefix_that_is_of_another_prompt_contradicts_the_manifest(artifact: Path) -> None:
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["prefixes"]["few"]["prompt"] = manifest["prefixes"]["more"]["prompt"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match="contradicts itself"):
        open_artifact(artifact)


def test_prefix_may_not_lead_out_of_the_folder(artifact: Path) -> None:
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["prefixes"]["few"]["file"] = "../few.safetensors"
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match="leading out of it"):
        open_artifact(artifact)


# -- baking --


def test_full_disk_is_told_and_leaves_nothing(
    base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    args = ["--model", base, "--out", tmp_path / "out", "--prompts", prompts, "--no-verify"]
    assert run([str(arg) for arg in args]) == 2
    assert not list(tmp_path.iterdir())


def test_disk_too_small_for_the_prefixes_is_refused_before_work(
    artifact: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anna_export.export.edit_prompts import add_prompts
    from anna_export.text.prompts import Prompts

    monkeypatch.setattr("anna_export.files.disk.disk_free_bytes", lambda _: 1000)
    with pytest.raises(SpaceError, match="MB free"):
        add_prompts(artifact, Prompts.of_fronts({"new": long_text(30)}), overwrite=False)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32])
def test_keys_that_the_type_cannot_hold_are_refused(
    make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: Precision
) -> None:
    model = make_model()
    path = model / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["layers.1.self_attn.v_proj.weight"] *= 5e5
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    prompts = write_prompts(tmp_path / "prompts.json", {"few": TASKS["few"]})
    args = ["--model", model, "--out", tmp_path / "out", "--prompts", prompts, "--no-verify"]
    code = run([*map(str, args), f"--{precision}"])
    assert code == (2 if precision is Precision.FP16 else 0)
    if code:
        assert "expected finite keys and values" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_prompts_are_computed_in_batches_with_progress(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Artifact(
        Path(shutil.copytree(original, tmp_path / "copy")), open_artifact(original).manifest
    )
    progress: list[tuple[int, int]] = []
    together = baking.bake(
        artifact, list(TASKS), artifact.tokeniser(), None, lambda *done: progress.append(done)
    )
    total = progress[-1][1]
    assert progress == sorted(progress) and progress[-1] == (total, total) and len(progress) > 10
    monkeypatch.setattr(baking, "_BATCH_TOKENS", 16)
    parts = baking.bake(artifact, list(TASKS), artifact.tokeniser(), None)
    assert parts.keys() == together.keys() == set(TASKS)


def test_prompt_with_nothing_in_front_is_not_baked(
    base: Path, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    prompts = write_prompts(tmp_path / "prompts.json", {"document": {"text": ""}})
    artifact = make_artifact(base, prompts=prompts)
    assert artifact.manifest.prefixes == {} and not (artifact.folder / "prefixes").exists()
    assert open_encoder(artifact.folder).encode(["a"], "document").shape == (1, 40)


def test_encoder_without_prefixes_computes_the_whole_prompt(original: Path) -> None:
    opened = open_encoder(original)
    without = Encoder(opened.backend, opened.tokeniser, opened.prompts)
    expected = without.encode(["a", "b"], "more")
    np.testing.assert_allclose(opened.encode(["a", "b"], "more"), expected, rtol=0, atol=1e-6)
    assert open_encoder(original, backend="pytorch").prefixes is None
