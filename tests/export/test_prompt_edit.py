"""Prompts of a finished artifact: added and removed without a weight being written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from anna_export import open_encoder
from anna_export.artifact.folder import open_artifact
from anna_export.artifact.manifest import PARITY_FILE
from anna_export.cli import run
from anna_export.console.output import stage
from anna_export.errors import DamagedError, ExistsError, InputError, SpaceError
from anna_export.export import edit_prompts as prompt_edit
from anna_export.export.edit_prompts import add_prompts, proved_prompts, remove_prompts
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.quantise.options import Fp32
from anna_export.report.card import add_parity
from anna_export.text.prompts import PROMPTS_FILE, Prompt, Prompts
from anna_export.verify.parity_file import read_parity
from anna_export.verify.parity_report import ParityReport
from anna_export.weights.checkpoint import Checkpoint
from tests.support.folders import names
from tests.support.types import Refused

WEIGHTS = "model.onnx.data"
STS = Prompts({"sts": Prompt("Like: ", "!")})


@pytest.fixture(scope="module")
def original(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with the prompts query, which is the default, and passage; both are proved."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "prompts.json").write_text(
        json.dumps(
            {
                "default": "query",
                "tasks": {
                    "query": {"text": "Query: ", "documents": "passage"},
                    "passage": {"text": "Passage: "},
                },
            }
        )
    )
    recipe = Recipe(base, None, folder / "out", Fp32(), 61, prompts=folder / "prompts.json")
    return export(recipe, stage).artifact.folder


@pytest.fixture
def artifact(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "artifact"))


# -- add --


def test_added_prompt_stands_around_texts(artifact: Path) -> None:
    before = open_encoder(artifact)
    add_prompts(artifact, STS, overwrite=False)
    after = open_encoder(artifact)
    # its prefix was computed by another library than the text
    np.testing.assert_allclose(
        after.encode(["a"], "sts"), before.encode(["Like: a!"], ""), rtol=0, atol=1e-6
    )
    assert (after.encode(["a"]) == before.encode(["a"])).all()


def test_no_weight_is_written_and_every_hash_holds(artifact: Path) -> None:
    before, inode = open_artifact(artifact).manifest, (artifact / WEIGHTS).stat().st_ino
    left = names(artifact.parent)
    add_prompts(artifact, STS, overwrite=False)
    after = open_artifact(artifact, check=True).manifest
    assert (artifact / WEIGHTS).stat().st_ino == inode and names(artifact.parent) == left
    assert after.artifact_id == before.artifact_id
    changed = {name for name in before.files if after.files[name] != before.files[name]}
    assert changed == {PROMPTS_FILE}


def test_proof_of_other_prompts_stays_valid(artifact: Path) -> None:
    evidence = open_artifact(artifact).manifest.evidence[PARITY_FILE]
    edited = add_prompts(artifact, STS, overwrite=False)
    assert edited.manifest.evidence[PARITY_FILE] == evidence
    assert proved_prompts(edited) == {"query", "passage"}
    assert "Like: " in (artifact / "README.md").read_text()


def test_proof_does_not_cover_a_prompt_that_was_replaced(artifact: Path) -> None:
    other = Prompts.of_fronts({"query": "Find: "})
    with pytest.raises(ExistsError, match=r"found query with other prompts"):
        add_prompts(artifact, other, overwrite=False)
    edited = add_prompts(artifact, other, overwrite=True)
    assert proved_prompts(edited) == {"passage"}
    # what replaced it says nothing of documents, and is still the default
    assert edited.manifest.prompts.documents == {} and edited.manifest.prompts.default == "query"


def test_proof_that_embedded_no_prompt_covers_none(artifact: Path) -> None:
    # as that of a model too large for this memory
    opened = open_artifact(artifact)
    report = read_parity(opened)
    assert report is not None
    add_parity(opened, ParityReport(replace(report.vectors, prompts=[])))
    assert proved_prompts(open_artifact(artifact)) == set()


def test_same_prompt_again_changes_nothing(artifact: Path) -> None:
    before = open_artifact(artifact).manifest.prompts
    again = Prompts(before.by_name, before.default, before.documents)
    assert add_prompts(artifact, again, overwrite=False).manifest.prompts == before


def test_default_of_what_is_added_becomes_the_artifacts(artifact: Path) -> None:
    add_prompts(artifact, Prompts(STS.by_name, "sts"), overwrite=False)
    config = json.loads((artifact / PROMPTS_FILE).read_text())
    assert config["default_prompt_name"] == "sts" and config["prompts"]["sts"] == "Like: "


def test_prompt_without_room_for_a_text_leaves_the_artifact_as_it_was(artifact: Path) -> None:
    before = open_artifact(artifact).manifest
    with pytest.raises(InputError, match="expected a prompt shorter than"):
        add_prompts(artifact, Prompts.of_fronts({"long": "word " * 90}), overwrite=False)
    assert open_artifact(artifact, check=True).manifest == before


def test_full_disk_leaves_the_artifact_as_it_was(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, left = open_artifact(artifact).manifest, names(artifact.parent)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prompt_edit, "with_prefixes", full)
    with pytest.raises(SpaceError):
        add_prompts(artifact, STS, overwrite=False)
    assert open_artifact(artifact, check=True).manifest == before
    assert names(artifact.parent) == left


def test_damaged_artifact_is_refused(artifact: Path) -> None:
    (artifact / "model.onnx").write_bytes(b"")
    with pytest.raises(DamagedError):
        add_prompts(artifact, STS, overwrite=False)


def test_disk_that_shares_no_files_holds_a_copy(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unshared(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", unshared)
    inode = (artifact / WEIGHTS).stat().st_ino
    add_prompts(artifact, STS, overwrite=False)
    assert (artifact / WEIGHTS).stat().st_ino != inode
    open_artifact(artifact, check=True)


def test_added_prompt_is_baked_and_others_keep_their_files(artifact: Path) -> None:
    before = open_artifact(artifact).manifest.prefixes
    inode = (artifact / before["query"].file).stat().st_ino
    after = add_prompts(artifact, STS, overwrite=False).manifest.prefixes
    assert set(after) == {"query", "passage", "sts"}
    assert {name: after[name] for name in before} == before
    assert (artifact / before["query"].file).stat().st_ino == inode
    # by the artifact's own weights
    assert not after["sts"].exact and after["query"].exact


def test_replaced_prompt_leaves_the_old_files_bytes_to_whoever_shares_them(
    artifact: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.hardlink_to(artifact / "prefixes" / "query.safetensors")
    before = shared.read_bytes()
    add_prompts(artifact, Prompts.of_fronts({"query": "Find this: "}), overwrite=True)
    assert shared.read_bytes() == before
    assert (artifact / "prefixes" / "query.safetensors").read_bytes() != before
    open_artifact(artifact, check=True)


def test_model_it_was_made_from_bakes_what_an_export_would(
    artifact: Path, base: Path, original: Path
) -> None:
    before = open_artifact(original).manifest.prefixes["query"]
    remove_prompts(artifact, ["query"])
    again = Prompts.of_fronts({"query": "Query: "})
    edited = add_prompts(artifact, again, overwrite=False, checkpoint=Checkpoint.open(base))
    entry = edited.manifest.prefixes["query"]
    assert (entry.ids, entry.prompt, entry.exact) == (before.ids, before.prompt, True)
    # two prompts were in a batch together; here is one
    for tensor, other in zip(tensors(artifact), tensors(original), strict=True):
        torch.testing.assert_close(tensor, other, rtol=0, atol=1e-6)


def tensors(folder: Path) -> list[torch.Tensor]:
    stored = load_file(folder / "prefixes" / "query.safetensors")
    return [stored["keys"], stored["values"]]


def test_model_that_it_was_not_made_from_is_refused(
    artifact: Path, base: Path, adapter: Path, refused: Refused, tmp_path: Path
) -> None:
    before = open_artifact(artifact).manifest
    with pytest.raises(InputError, match=r"model and adapter that .* was made from, found others"):
        add_prompts(artifact, STS, overwrite=False, checkpoint=Checkpoint.open(base, adapter))
    assert open_artifact(artifact).manifest == before
    args = ["prompts", "add", artifact, tmp_path / "prompts.json", "--adapter", adapter]
    assert "expected --model with --adapter" in refused(*args)


# -- remove --


def test_removed_prompts_file_is_gone(artifact: Path) -> None:
    edited = remove_prompts(artifact, ["query"])
    assert set(edited.manifest.prefixes) == {"passage"}
    assert names(artifact / "prefixes") == {"passage.safetensors"}


def test_removed_prompt_is_unknown(artifact: Path) -> None:
    left = remove_prompts(artifact, ["query"]).manifest.prompts
    assert set(left.by_name) == {"passage"} and left.default is None and left.documents == {}
    with pytest.raises(InputError, match=r"known prompt \(passage\), found 'query'"):
        open_encoder(artifact).encode(["a"], "query")


def test_prompt_that_documents_of_another_need_is_kept(artifact: Path) -> None:
    with pytest.raises(InputError, match="documents of query"):
        remove_prompts(artifact, ["passage"])
    assert not remove_prompts(artifact, ["passage", "query"]).manifest.prompts.by_name


def test_unknown_prompt_is_refused_with_the_known_ones(artifact: Path) -> None:
    with pytest.raises(InputError, match=r"\(passage, query\), found 'qurey'"):
        remove_prompts(artifact, ["query", "qurey"])
    assert set(open_artifact(artifact).manifest.prompts.by_name) == {"passage", "query"}


# -- list --


def test_list_tells_length_default_documents_and_proof(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_prompts(artifact, STS, overwrite=False)
    assert run(["prompts", "list", str(artifact), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["default"] == "query"
    prompts = {
        name: (prompt["proved"], prompt["documents"], prompt["front"], prompt["back"])
        for name, prompt in listed["prompts"].items()
    }
    assert prompts == {
        "query": (True, "passage", "Query: ", ""),
        "passage": (True, "", "Passage: ", ""),
        "sts": (False, "", "Like: ", "!"),
    }
    tokeniser = open_artifact(artifact).tokeniser()
    for prompt in listed["prompts"].values():
        ids = tokeniser.ids([prompt["front"] + prompt["back"]])[0]
        assert prompt["tokens"] == len(ids) - 2  # without what frames every text
    assert run(["prompts", "list", str(artifact)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("query (default) ") for line in lines)
    assert lines[-1] == (
        "prompts without a proof: run anna-export verify ARTIFACT --model MODEL --adapter ADAPTER"
    )


def test_long_prompt_is_shortened_on_a_line(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_prompts(artifact, Prompts.of_fronts({"long": f"start{' word' * 40}end"}), overwrite=True)
    capsys.readouterr()
    assert run(["prompts", "list", str(artifact)]) == 0
    (line,) = (text for text in capsys.readouterr().out.splitlines() if text[:4] == "long")
    assert len(line) < 150 and "'start word" in line and line.endswith(" wordend'")


def test_mistakes_are_told_in_one_line(artifact: Path, refused: Refused, tmp_path: Path) -> None:
    assert "expected a file of prompts" in refused("prompts", "add", artifact, tmp_path / "no.json")
    assert "known prompts" in refused("prompts", "remove", artifact, "nobody")
