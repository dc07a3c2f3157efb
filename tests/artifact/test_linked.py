"""Artifacts whose files are links: the hub's cache, ConfigMap mounts, Nix, git-annex."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from anna_export import open_encoder
from anna_export.artifact.evidence import add_evidence
from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import MANIFEST_FILE
from anna_export.backends import ort
from anna_export.cli import run
from anna_export.engines.build import gpu_form
from anna_export.errors import DamagedError, MissingError
from anna_export.export.edit_prompts import add_prompts, remove_prompts
from anna_export.files.hub_cache import folder_name
from anna_export.graph.external_data import DATA_FILE
from anna_export.reference.streamed import open_streamed_artifact
from anna_export.report.facts import read_facts
from anna_export.serve.load_model import ModelLoader
from anna_export.text.prompts import NO_PROMPT, Prompt, Prompts
from anna_export.verify.parity_file import read_parity
from anna_export.verify.texts import ODD_TEXTS
from tests.support.folders import names
from tests.support.linked import LAYOUTS, contents, lay_hub, lay_repository
from tests.support.types import MakeArtifact

TEXTS = list(ODD_TEXTS[:12])


@dataclass(frozen=True)
class Shared:
    """A linked artifact in a root that keeps its content, and that content as it was."""

    folder: Path
    root: Path
    before: dict[str, bytes]

    def require_unchanged(self) -> None:
        after = contents(self.root)
        assert {name: after.get(name) for name in self.before} == self.before


@pytest.fixture(scope="module")
def plain(
    base: Path, make_artifact: MakeArtifact, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An artifact of files, with the prompts query and passage baked."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.json"
    tasks = {"query": {"text": "Find: "}, "passage": {"text": "Read: "}}
    prompts.write_text(json.dumps({"default": "query", "tasks": tasks}))
    return make_artifact(base, prompts=prompts).folder


@pytest.fixture(params=LAYOUTS)
def linked(request: pytest.FixtureRequest, plain: Path, tmp_path: Path) -> Path:
    """The same artifact of links, in a folder without the files themselves."""
    (tmp_path / "root").mkdir()
    return LAYOUTS[request.param](plain, tmp_path / "root")


# -- what reads it --


@pytest.mark.parametrize("backend", ["ort", "pytorch"])
def test_linked_artifact_gives_the_vectors_of_its_files(
    linked: Path, plain: Path, backend: str
) -> None:
    assert (linked / DATA_FILE).is_symlink() and (linked / MANIFEST_FILE).is_symlink()
    encoder = open_encoder(linked, backend=backend, check=True)
    expected = open_encoder(plain, backend=backend)
    for prompt in (None, "passage", ""):
        np.testing.assert_array_equal(encoder.encode(TEXTS, prompt), expected.encode(TEXTS, prompt))


def test_linked_prefix_in_a_subfolder_is_read(linked: Path) -> None:
    encoder = open_encoder(linked)
    query = encoder.prompts.find("query")
    (sequence,) = encoder.tokenise(["a text"], query)
    assert sequence.prefix is not None and len(sequence.prefix) > 2


def test_linked_weights_are_streamed(linked: Path, plain: Path) -> None:
    encoder = open_encoder(plain)
    batch = encoder.batch(encoder.tokenise(TEXTS, NO_PROMPT))
    streamed, expected = (
        open_streamed_artifact(open_artifact(folder)).run(batch) for folder in (linked, plain)
    )
    np.testing.assert_array_equal(streamed, expected)


def test_graph_for_engines_takes_its_weights_from_behind_links(
    linked: Path, plain: Path, tmp_path: Path
) -> None:
    written = []
    for folder, name in ((linked, "linked"), (plain, "plain")):
        (tmp_path / name).mkdir()
        ir.save(gpu_form(open_artifact(folder)), tmp_path / name / "g.onnx", external_data="g.data")
        written.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert written[0] == written[1] and len(written[0]) == 2


def test_linked_artifact_is_loaded_for_serving(linked: Path, plain: Path) -> None:
    loaded = ModelLoader(linked)()
    assert {prompt.front for prompt in loaded.prefix_ids} == {"Find: ", "Read: "}
    expected = open_encoder(plain).encode(TEXTS)
    np.testing.assert_array_equal(loaded.encoder.encode(TEXTS), expected)
    # what answers in place of a runtime that fails its check
    np.testing.assert_allclose(loaded.open_safe().encode(TEXTS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("command", ["inspect ARTIFACT --json", "embed ARTIFACT TEXTS --out OUT"])
def test_commands_read_a_linked_artifact(linked: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "texts.txt").write_text("a\nb\n")
    paths = {"ARTIFACT": linked, "TEXTS": tmp_path / "texts.txt", "OUT": tmp_path / "out.npy"}
    assert run([str(paths.get(word, word)) for word in command.split()]) == 0


def test_artifact_in_the_hubs_cache_is_called_by_its_repository(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = lay_repository(plain, tmp_path, "me/my-embed")
    assert folder_name(snapshot) == "my-embed" and folder_name(plain) == plain.name
    assert run(["package", str(snapshot), "--triton", str(tmp_path / "t"), "--json"]) == 0
    assert "my-embed" in json.loads(capsys.readouterr().out)["ensembles"]
    assert read_facts(snapshot).name == "my-embed"


def test_repositorys_folder_in_the_cache_is_refused_with_the_snapshot(
    plain: Path, tmp_path: Path
) -> None:
    snapshot = lay_repository(plain, tmp_path, "me/my-embed")
    with pytest.raises(MissingError, match=f"; name {snapshot}, which has one"):
        open_artifact(snapshot.parent.parent)


def test_packaged_model_holds_files_and_no_links(linked: Path, plain: Path, tmp_path: Path) -> None:
    assert run(["package", str(linked), "--triton", str(tmp_path / "t"), "--name", "m"]) == 0
    assert not any(path.is_symlink() for path in (tmp_path / "t").rglob("*"))
    (weights,) = (tmp_path / "t").rglob(DATA_FILE)
    assert weights.read_bytes() == (plain / DATA_FILE).read_bytes()


# -- what is refused --


def test_link_to_other_content_is_damage(plain: Path, tmp_path: Path) -> None:
    linked = lay_hub(plain, tmp_path)
    other = tmp_path / "blobs" / "other"
    content = bytearray((linked / DATA_FILE).read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    (linked / DATA_FILE).unlink()
    (linked / DATA_FILE).symlink_to(other)
    with pytest.raises(DamagedError, match=r"model\.onnx\.data \(other content\)"):
        open_artifact(linked)


def test_link_to_nothing_is_a_missing_file(plain: Path, tmp_path: Path) -> None:
    linked = lay_hub(plain, tmp_path)
    (linked / DATA_FILE).resolve().unlink()
    with pytest.raises(DamagedError, match=r"model\.onnx\.data \(missing\)"):
        open_artifact(linked)


def test_weights_that_the_manifest_does_not_list_are_refused(plain: Path) -> None:
    opened = open_artifact(plain)
    files = {name: entry for name, entry in opened.manifest.files.items() if name != DATA_FILE}
    unlisted = Artifact(plain, opened.manifest.model_copy(update={"files": files}))
    for open_backend in (ort.open_backend, open_streamed_artifact):
        with pytest.raises(DamagedError, match=f"expected .* in the {DATA_FILE} that the manifest"):
            open_backend(unlisted)


def test_weights_of_two_names_are_read_by_every_reader(plain: Path, tmp_path: Path) -> None:
    # as a store that keeps equal files once has them; onnx_ir takes it for an attack
    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    os.link(copy / DATA_FILE, tmp_path / "another name")
    expected = open_encoder(plain).encode(TEXTS)
    np.testing.assert_array_equal(open_encoder(copy).encode(TEXTS), expected)
    ir.save(gpu_form(open_artifact(copy)), tmp_path / "g.onnx", external_data="g.data")


# -- what writes into it --


@pytest.fixture(params=LAYOUTS)
def shared(request: pytest.FixtureRequest, plain: Path, tmp_path: Path) -> Shared:
    """A linked artifact, and all that is kept behind its links."""
    (tmp_path / "root").mkdir()
    folder = LAYOUTS[request.param](plain, tmp_path / "root")
    return Shared(folder, tmp_path / "root", contents(tmp_path / "root"))


def test_verify_stores_its_proof_beside_links_and_changes_no_content(
    shared: Shared, base: Path
) -> None:
    assert run(["verify", str(shared.folder), "--model", str(base)]) == 0
    assert read_parity(open_artifact(shared.folder, check=True)) is not None
    shared.require_unchanged()


def test_added_prompts_change_no_content_behind_links(shared: Shared, plain: Path) -> None:
    added = Prompts({"sts": Prompt("Like: "), "query": Prompt("Another: ")})
    add_prompts(shared.folder, added, overwrite=True)
    encoder = open_encoder(shared.folder, check=True)
    assert set(encoder.prompts.by_name) == {"sts", "query", "passage"}
    np.testing.assert_array_equal(
        encoder.encode(TEXTS, "passage"), open_encoder(plain).encode(TEXTS, "passage")
    )
    assert (shared.folder / DATA_FILE).is_symlink()  # no weight was copied
    shared.require_unchanged()


def test_removed_prompts_stay_behind_links(shared: Shared) -> None:
    remove_prompts(shared.folder, ["query"])
    assert set(open_artifact(shared.folder, check=True).manifest.prefixes) == {"passage"}
    shared.require_unchanged()


def test_report_replaces_a_link_by_a_file(shared: Shared) -> None:
    assert run(["report", str(shared.folder)]) == 0
    assert not (shared.folder / MANIFEST_FILE).is_symlink()
    open_artifact(shared.folder, check=True)
    shared.require_unchanged()


def test_evidence_in_a_linked_folder_makes_it_one_of_the_artifacts(
    plain: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "tensorrt").mkdir(parents=True)
    (elsewhere / "tensorrt" / "old").write_text("old")
    (copy / "engines").symlink_to("../elsewhere")
    add_evidence(open_artifact(copy), "engines/tensorrt/new", "new")
    assert contents(elsewhere) == {"tensorrt/old": b"old"}
    assert names(copy / "engines" / "tensorrt") == {"old", "new"}
    assert (copy / "engines" / "tensorrt" / "old").read_text() == "old"
    assert names(copy) == names(plain) | {"engines"}


def test_other_snapshot_of_the_same_content_stays_as_it_is(plain: Path, tmp_path: Path) -> None:
    first, second = (lay_hub(plain, tmp_path, revision) for revision in ("1" * 40, "2" * 40))
    before = {path: path.read_bytes() for path in second.rglob("*") if path.is_file()}
    add_prompts(first, Prompts({"sts": Prompt("Like: ")}), overwrite=False)
    assert {path: path.read_bytes() for path in second.rglob("*") if path.is_file()} == before
    assert "sts" not in open_artifact(second, check=True).manifest.prompts.by_name
    assert names(tmp_path / "snapshots") == {"1" * 40, "2" * 40}


def test_dangling_link_beside_the_files_is_carried_along(plain: Path, tmp_path: Path) -> None:
    # as git-annex leaves what was not fetched
    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    (copy / "notes.txt").symlink_to("nothing")
    add_prompts(copy, Prompts({"sts": Prompt("Like: ")}), overwrite=False)
    assert os.readlink(copy / "notes.txt") == "nothing"
