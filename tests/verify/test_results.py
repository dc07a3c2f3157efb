"""mteb's own cache reads what verify writes into an artifact's `mteb/`."""

import shutil
from pathlib import Path
from typing import Any

import mteb
import pytest
from mteb.results import ModelResult

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.cli import run
from anna_export.verify.mteb_model import mteb_model
from tests.support.types import MakeArtifact, MakeModel

Output = pytest.CaptureFixture[str]
HUB = ["--model-name", "acme/embed-7b", "--revision", "0123abc"]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Path:
    return make_model(seed=5)


@pytest.fixture(scope="module")
def artifact(model: Path, make_artifact: MakeArtifact) -> Artifact:
    return make_artifact(model)


def verified(artifact: Artifact, model: Path, out: Path, tasks: Path, *options: str) -> Artifact:
    """Return a copy that was verified on tasks of a folder."""
    shutil.copytree(artifact.folder, out / "artifact")
    verify = ["verify", str(out / "artifact"), "--model", str(model), "--task-data", str(tasks)]
    assert run([*verify, "--cache", str(out / "cache"), "--margin", "0.2", *options]) == 0
    return open_artifact(out / "artifact", check=True)


def loaded(artifact: Artifact, **options: Any) -> list[ModelResult]:
    return mteb.ResultCache(artifact.folder / "mteb").load_results(**options).model_results


def refusal(command: list[str], capsys: Output) -> str:
    """Return the one line that the command is refused with."""
    capsys.readouterr()
    assert run(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.slow
def test_mteb_loads_each_task_with_the_description_it_wrote(
    artifact: Artifact, model: Path, small: Path, tmp_path: Path
) -> None:
    names = {"SmallSTS", "SmallPairs"}
    tasks = [part for name in names for part in ("--task", name)]
    opened = verified(artifact, model, tmp_path, small, *tasks)
    (result,) = loaded(opened)
    assert {task.task_name for task in result.task_results} == names
    assert result.model_name == f"anna-export/{model.name}-fp32"
    assert result.model_revision == opened.manifest.artifact_id
    (meta,) = mteb.ResultCache(opened.folder / "mteb")._normalize_models()
    assert meta == mteb_model(opened.folder).mteb_model_meta
    assert (meta.embed_dim, meta.n_parameters) == (
        opened.manifest.spec.dim,
        opened.manifest.spec.parameters,
    )
    # what mteb wrote is listed, so that a change of it is seen
    written = {path for path in (opened.folder / "mteb").rglob("*") if path.is_file()}
    listed = {opened.folder / name for name in opened.manifest.evidence}
    assert written == {path for path in listed if path.is_relative_to(opened.folder / "mteb")}


@pytest.mark.slow
def test_results_bear_the_name_and_revision_of_the_hub_beside_earlier_ones(
    artifact: Artifact, model: Path, small: Path, tmp_path: Path
) -> None:
    opened = verified(artifact, model, tmp_path, small, "--task", "SmallSTS", *HUB)
    (result,) = loaded(opened)
    assert (result.model_name, result.model_revision) == ("acme/embed-7b", "0123abc")
    again = ["verify", str(opened.folder), "--model", str(model), "--task-data", str(small)]
    again += ["--cache", str(tmp_path / "cache"), "--margin", "0.2", "--task", "SmallPairs"]
    assert run([*again, *HUB]) == 0
    assert run(again) == 0
    tasks = {
        entry.model_name: {task.task_name for task in entry.task_results}
        for entry in loaded(opened)
    }
    default = f"anna-export/{model.name}-fp32"
    assert tasks == {"acme/embed-7b": {"SmallSTS", "SmallPairs"}, default: {"SmallPairs"}}


def test_a_task_of_mteb_is_valid_to_mteb(
    artifact: Artifact, model: Path, real: Path, tmp_path: Path
) -> None:
    opened = verified(artifact, model, tmp_path, real, "--task", "BIOSSES", *HUB)
    (result,) = loaded(
        opened, models=["acme/embed-7b"], tasks=["BIOSSES"], validate_and_filter=True
    )
    (task,) = result.task_results
    assert (task.task_name, list(task.scores)) == ("BIOSSES", ["test"])


def test_python_evaluates_under_the_same_name(artifact: Artifact) -> None:
    meta = mteb_model(
        artifact.folder, model_name="acme/embed-7b", revision="0123abc"
    ).mteb_model_meta
    assert (meta.name, meta.revision) == ("acme/embed-7b", "0123abc")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model-name", "embed-7b"], "expected --model-name to be ORGANISATION/NAME"),
        (["--model-name", "a/b/c"], "expected --model-name to be ORGANISATION/NAME"),
        (["--model-name", "../embed"], "expected --model-name to be ORGANISATION/NAME"),
        (["--model-name", "acme/my embed"], "expected --model-name to be ORGANISATION/NAME"),
        (["--model-name", "acme/embed\n"], "expected --model-name to be ORGANISATION/NAME"),
        (["--revision", "refs/pr/1"], "expected --revision to be a commit or tag"),
        (["--revision", ".."], "expected --revision to be a commit or tag"),
        (["--revision", ""], "expected --revision to be a commit or tag"),
    ],
)
def test_a_name_that_is_no_folder_of_results_is_refused_at_once(
    options: list[str],
    expected: str,
    artifact: Artifact,
    model: Path,
    small: Path,
    tmp_path: Path,
    capsys: Output,
) -> None:
    verify = ["verify", str(artifact.folder), "--model", str(model), "--tier", "quick"]
    verify += ["--task-data", str(small), "--cache", str(tmp_path / "cache")]
    assert expected in refusal([*verify, *options], capsys)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "options",
    [HUB[:2], HUB[2:], ["--margin", "0.1"], ["--trained-on", "x"], ["--task-prompts", "none"]],
)
@pytest.mark.parametrize("tier", [[], ["--tier", "vectors"]])
def test_an_option_of_tasks_is_refused_where_none_is_run(
    options: list[str], tier: list[str], artifact: Artifact, model: Path, capsys: Output
) -> None:
    verify = ["verify", str(artifact.folder), "--model", str(model), *tier, *options]
    assert f"expected tasks for {options[0]}, found none to run" in refusal(verify, capsys)
