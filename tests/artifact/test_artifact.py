"""The artifact: what its identity is, what damage is found, and how evidence is added."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from anna_export.artifact import evidence, manifest
from anna_export.artifact import folder as artifact_folder
from anna_export.artifact.evidence import add_evidence, read_evidence
from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import (
    CARD_FILE,
    MANIFEST_FILE,
    PARITY_FILE,
    SCHEMA_VERSION,
    FileEntry,
    hash_file,
    identity,
    write_manifest,
)
from anna_export.backends import open_encoder
from anna_export.encoder import Encoder
from anna_export.errors import DamagedError, InputError, MissingError
from anna_export.files.atomic import write_text
from anna_export.graph.external_data import DATA_FILE
from anna_export.text.prompts import PROMPTS_FILE
from tests.support.folders import edit_json

TEXTS = ["a transfer", "", "漢字とかな " * 5]


@pytest.fixture
def copy(artifact: Artifact, tmp_path: Path) -> Path:
    """A copy of the artifact, to damage."""
    return Path(shutil.copytree(artifact.folder, tmp_path / "copy"))


def flip(path: Path) -> None:
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit_json(folder / MANIFEST_FILE, change)


def list_again(folder: Path) -> None:
    """Make the manifest agree with changed files, as someone who means harm would."""
    manifest = open_manifest(folder)
    files = {name: hash_file(folder / name) for name in manifest.files}
    changed = manifest.model_copy(
        update={
            "files": files,
            "artifact_id": identity(files, manifest.spec, manifest.framing),
        }
    )
    write_manifest(folder, changed)


def open_manifest(folder: Path) -> manifest.Manifest:
    return manifest.Manifest.model_validate_json((folder / MANIFEST_FILE).read_text())


# --- identity ---


def test_manifest_reads_back_as_written(artifact: Artifact) -> None:
    manifest = open_artifact(artifact.folder).manifest
    assert manifest == artifact.manifest
    text = (artifact.folder / MANIFEST_FILE).read_text()
    assert manifest.model_dump_json(indent=2) + "\n" == text


def test_manifest_lists_every_file_but_itself(artifact: Artifact) -> None:
    manifest = artifact.manifest
    files = [path for path in artifact.folder.rglob("*") if path.is_file()]
    listed = {*manifest.files, *manifest.evidence, MANIFEST_FILE}
    assert listed == {path.relative_to(artifact.folder).as_posix() for path in files}
    assert set(manifest.evidence) == {PARITY_FILE, CARD_FILE}


@pytest.mark.parametrize(
    "name", [DATA_FILE, "model.onnx", "model.cpu.onnx", "tokenizer.json", "tokenizer_config.json"]
)
def test_artifact_id_changes_with_what_embeds(artifact: Artifact, name: str) -> None:
    manifest = artifact.manifest
    other = {**manifest.files, name: FileEntry(sha256="0" * 64, size_bytes=1)}
    assert identity(other, manifest.spec, manifest.framing) != manifest.artifact_id


def test_artifact_id_changes_with_spec_and_contract(artifact: Artifact) -> None:
    manifest = artifact.manifest
    files, spec, framing = manifest.files, manifest.spec, manifest.framing
    assert identity(files, spec, framing) == manifest.artifact_id
    assert identity(files, replace(spec, norm_eps=2e-5), framing) != manifest.artifact_id
    assert identity(files, spec, replace(framing, max_tokens=77)) != manifest.artifact_id


@pytest.mark.parametrize("name", [PROMPTS_FILE, "modules.json"])
def test_artifact_id_stays_when_prompts_change(artifact: Artifact, name: str) -> None:
    manifest = artifact.manifest
    assert name in manifest.files
    other = {**manifest.files, name: FileEntry(sha256="0" * 64, size_bytes=1)}
    assert identity(other, manifest.spec, manifest.framing) == manifest.artifact_id


# --- damage ---


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink], ids=["flip", "cut", "lose"])
@pytest.mark.parametrize(
    "name", [DATA_FILE, "model.onnx", "model.cpu.onnx", "tokenizer.json", "modules.json"]
)
def test_damaged_file_is_named(copy: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(copy / name)
    with pytest.raises(DamagedError, match=f" {name} \\("):
        open_artifact(copy)


def test_every_damaged_file_is_named_at_once(copy: Path) -> None:
    flip(copy / "tokenizer.json")
    truncate(copy / DATA_FILE)
    (copy / "model.onnx").unlink()
    with pytest.raises(DamagedError) as caught:
        open_artifact(copy)
    for problem in ("tokenizer.json (other", f"{DATA_FILE} (5", "model.onnx (missing)"):
        assert problem in str(caught.value)


def test_evidence_is_hashed_only_by_check(copy: Path) -> None:
    flip(copy / PARITY_FILE)
    open_artifact(copy)
    with pytest.raises(DamagedError, match=f"{PARITY_FILE} \\(other content\\)"):
        open_artifact(copy, check=True)


def test_damaged_evidence_is_not_read(copy: Path) -> None:
    opened = open_artifact(copy)
    assert read_evidence(opened, "absent.json") is None
    parity = read_evidence(opened, PARITY_FILE)
    assert parity is not None and parity["verdict"] == "pass"
    flip(copy / PARITY_FILE)
    with pytest.raises(DamagedError, match="anna-export verify"):
        read_evidence(opened, PARITY_FILE)


def test_large_files_are_hashed_only_by_check(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sorted(entry.size_bytes for entry in open_manifest(copy).files.values())
    monkeypatch.setattr(artifact_folder, "HASHED_BYTES", sum(sizes[:-1]))
    flip(copy / DATA_FILE)
    open_artifact(copy)
    with pytest.raises(DamagedError, match=f"{DATA_FILE} \\(other content\\)"):
        open_artifact(copy, check=True)
    truncate(copy / DATA_FILE)
    with pytest.raises(DamagedError, match="bytes, not"):
        open_artifact(copy)


def test_files_up_to_the_limit_are_hashed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(entry.size_bytes for entry in open_manifest(copy).files.values())
    monkeypatch.setattr(artifact_folder, "HASHED_BYTES", total)
    flip(copy / DATA_FILE)
    with pytest.raises(DamagedError, match=DATA_FILE):
        open_artifact(copy)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"{}",
        b"\xff\xfe",
        b'{"schema_version": "one"}',
        b'{"schema_version": 0}',
    ],
)
def test_manifest_that_is_none_is_damage(copy: Path, text: bytes) -> None:
    (copy / MANIFEST_FILE).write_bytes(text)
    with pytest.raises(DamagedError, match="manifest"):
        open_artifact(copy)


@pytest.mark.parametrize(
    ("schema", "remedy"),
    [(SCHEMA_VERSION + 1, "update anna-export"), (1, "export it again")],
)
def test_other_schema_asks_for_an_update_or_an_export(copy: Path, schema: int, remedy: str) -> None:
    edit(copy, lambda manifest: manifest.update(schema_version=schema, new_part={}))
    with pytest.raises(DamagedError, match=rf"schema {SCHEMA_VERSION}, found {schema}.*{remedy}"):
        open_artifact(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(extra=1),
        lambda manifest: manifest["files"]["model.onnx"].update(extra=1),
        lambda manifest: manifest.pop("golden"),
        lambda manifest: manifest.update(precision="fp12"),
        lambda manifest: manifest["spec"].update(heads=7),
        lambda manifest: manifest["spec"].update(dim=41),
        lambda manifest: manifest["framing"].update(max_tokens=9),
        lambda manifest: manifest.update(artifact_id="0" * 64),
        lambda manifest: manifest["files"].pop("tokenizer.json"),
        lambda manifest: manifest["prompts"].update(texts={"query": "another"}),
        lambda manifest: manifest["graphs"].update(cpu="unlisted.onnx"),
        lambda manifest: manifest["graphs"].update(cpu="../model.onnx"),
    ],
    ids=(
        "key entry-key no-golden precision heads dim max-tokens id file prompts graph path".split()
    ),
)
def test_edited_manifest_is_damage(copy: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit(copy, change)
    with pytest.raises(DamagedError, match="manifest"):
        open_artifact(copy)


@pytest.mark.parametrize("name", ["../copy.bin", "/etc/hostname", "sub/../../copy.bin"])
@pytest.mark.parametrize("part", ["files", "evidence"])
def test_listed_file_may_not_lie_outside(copy: Path, part: str, name: str) -> None:
    outside = copy.parent / "copy.bin"
    outside.write_bytes(b"secret")
    (copy / "sub").mkdir()
    entry = hash_file(outside).model_dump()
    extra = {"covers": "", "prompts": {}} if part == "evidence" else {}
    edit(copy, lambda manifest: manifest[part].update({name: {**entry, **extra}}))
    with pytest.raises(DamagedError, match="leading out of it"):
        open_artifact(copy)


@pytest.mark.parametrize("location", ["../weights", "/absolute", "sub/../../weights", "link"])
@pytest.mark.parametrize("backend", ["ort", "pytorch"])
def test_weights_outside_the_folder_are_refused(copy: Path, location: str, backend: str) -> None:
    outside = copy.parent / "weights"
    shutil.copyfile(copy / DATA_FILE, outside)
    (copy / "sub").mkdir()
    (copy / "link").symlink_to(outside)
    for graph in copy.glob("*.onnx"):
        model = onnx.load(graph, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = str(outside) if location == "/absolute" else location
        graph.write_bytes(model.SerializeToString())
    list_again(copy)
    with pytest.raises(DamagedError, match=r"external data|External data"):
        open_encoder(copy, backend=backend)


def test_other_golden_ids_are_refused(copy: Path) -> None:
    edit(copy, lambda manifest: manifest["golden"][2]["ids"].reverse())
    with pytest.raises(DamagedError, match=r"golden token ids.*install tokenizers=="):
        open_encoder(copy)


@pytest.mark.parametrize("kind", ["absent", "empty", "file"])
def test_folder_without_manifest_is_no_artifact(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    if kind == "empty":
        folder.mkdir()
    if kind == "file":
        folder.write_text("")
    with pytest.raises(MissingError, match="expected an artifact"):
        open_artifact(folder)


def test_unknown_graph_is_an_error(artifact: Artifact) -> None:
    with pytest.raises(InputError, match="canonical"):
        artifact.graph("tensorrt")


# --- use ---


def test_moved_artifact_gives_the_same_vectors(copy: Path, encoder: Encoder) -> None:
    moved = copy.rename(copy.parent / "moved with spaces ü")
    np.testing.assert_array_equal(open_encoder(moved).encode(TEXTS), encoder.encode(TEXTS))


def test_use_writes_nothing_into_the_folder(copy: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    for path in copy.iterdir():
        path.chmod(0o444)
    copy.chmod(0o555)
    changed = copy.stat().st_mtime_ns
    try:
        open_artifact(copy, check=True)
        open_encoder(copy).encode(TEXTS)
        assert copy.stat().st_mtime_ns == changed
        assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == before
    finally:
        copy.chmod(0o755)


_audited: list[str] | None = None


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _audited is None:
        return
    if event == "pickle.find_class":
        _audited.append(event)
    if event == "open" and str(arguments[0]).endswith((".bin", ".pt", ".pth", ".pkl", ".model")):
        _audited.append(str(arguments[0]))


def test_use_never_unpickles(copy: Path) -> None:
    global _audited
    for name in ("pytorch_model.bin", "model.pt", "weights.pkl"):
        (copy / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    sys.addaudithook(_audit)
    _audited = []
    try:
        open_encoder(copy, check=True).encode(TEXTS)
        assert _audited == []
    finally:
        _audited = None


@pytest.mark.slow
def test_two_processes_use_one_artifact(artifact: Artifact, encoder: Encoder) -> None:
    code = (
        "import sys, anna_export; "
        "print(anna_export.open_encoder(sys.argv[1]).encode('a transfer').tobytes().hex())"
    )
    command = [sys.executable, "-c", code, str(artifact.folder)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    vectors = [process.communicate(timeout=120)[0].strip() for process in both]
    assert vectors == [encoder.encode("a transfer").tobytes().hex()] * 2


# --- evidence ---


def test_added_evidence_leaves_the_rest_valid(copy: Path) -> None:
    before = open_artifact(copy)
    after = add_evidence(before, "bench.json", '{"texts_per_second": 3}\n')
    assert open_artifact(copy, check=True).manifest == after.manifest
    earlier = {name: after.manifest.evidence[name] for name in before.manifest.evidence}
    assert earlier == before.manifest.evidence
    assert after.manifest.artifact_id == before.manifest.artifact_id
    assert after.manifest.evidence["bench.json"].covers == before.manifest.artifact_id


def test_evidence_of_another_process_is_kept(copy: Path) -> None:
    first, second = open_artifact(copy), open_artifact(copy)
    add_evidence(first, "one.json", "{}")
    add_evidence(second, "two.json", "{}")
    assert {"one.json", "two.json"} <= set(open_artifact(copy, check=True).manifest.evidence)


def test_evidence_of_many_writers_at_once_is_kept(copy: Path) -> None:
    written = [f"{index}.json" for index in range(16)]
    with ThreadPoolExecutor(4) as writers:
        list(writers.map(lambda name: add_evidence(open_artifact(copy), name, "{}"), written))
    assert set(written) <= set(open_artifact(copy, check=True).manifest.evidence)


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_death_while_evidence_is_replaced_leaves_a_valid_artifact(
    copy: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    writes: list[Path] = []

    def dying(path: Path, text: str) -> None:
        if len(writes) == dies_at:
            raise KeyboardInterrupt
        writes.append(path)
        write_text(path, text)

    for module in (evidence, manifest):
        monkeypatch.setattr(module, "write_text", dying)
    with pytest.raises(KeyboardInterrupt):
        add_evidence(open_artifact(copy), PARITY_FILE, '{"verdict": "fail"}')
    assert len(writes) == dies_at
    parity = read_evidence(open_artifact(copy, check=True), PARITY_FILE)
    assert parity is None if dies_at else parity is not None and parity["verdict"] == "pass"
