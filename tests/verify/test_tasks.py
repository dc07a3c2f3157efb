"""Artifacts on tasks: the verdict is right, and every text is embedded once."""

import json
import re
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import PARITY_FILE, hash_file, identity, write_manifest
from anna_export.backends import load_encoder
from anna_export.cli import run
from anna_export.encoder import Encoder
from anna_export.errors import InputError, MissingError, UnsupportedError
from anna_export.progress import Progress
from anna_export.spec import Precision
from anna_export.text.batch import TokenBatch
from anna_export.verify import models
from anna_export.verify.parity_file import read_parity
from anna_export.verify.parity_report import TaskParity, Verdict
from anna_export.verify.task_data import sources
from anna_export.verify.tasks import TaskRun, compare_tasks, plan
from tests.support.types import MakeArtifact, MakeModel
from tests.verify.small_tasks import write_small_tasks

Output = pytest.CaptureFixture[str]
# of sixty units no smaller difference can be told
MARGIN = 0.1


class Stages:
    """Notes what each stage reports."""

    def __init__(self) -> None:
        self.reports: dict[str, list[tuple[int, int]]] = {}

    def __call__(self, name: str, unit: str) -> AbstractContextManager[Progress | None]:
        reports = self.reports.setdefault(name, [])
        return nullcontext(lambda done, total: reports.append((done, total)))


def task_run(
    folder: Path, cache: Path, names: Sequence[str] = (), margin: float | None = MARGIN
) -> TaskRun:
    return TaskRun(sources("quick", names, folder), "quick", cache, margin)


def judged(
    artifact: Artifact, model: Path, run: TaskRun, adapter: Path | None = None, **options: Any
) -> TaskParity:
    return compare_tasks(artifact, model, adapter, run, plan(artifact, run), **options).parity


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Path:
    """Attends sharply, so that a broken layer shows in every score."""
    return make_model(hidden_size=64, intermediate_size=96, initializer_range=0.1, seed=5)


@pytest.fixture(scope="module")
def intact(model: Path, make_artifact: MakeArtifact) -> Artifact:
    return make_artifact(model)


@dataclass(frozen=True)
class EveryKind:
    """The artifact itself on every kind of task, and what its stages reported."""

    run: TaskRun
    parity: TaskParity
    stages: Stages


@pytest.fixture(scope="module")
def every_kind(
    intact: Artifact, model: Path, small: Path, tmp_path_factory: pytest.TempPathFactory
) -> EveryKind:
    run, stages = task_run(small, tmp_path_factory.mktemp("every-kind")), Stages()
    return EveryKind(run, judged(intact, model, run, alike=True, stage=stages), stages)


@pytest.mark.slow
def test_the_artifact_itself_passes_on_every_kind_of_task(every_kind: EveryKind) -> None:
    parity = every_kind.parity
    verdicts = {task.name: task.verdict for task in parity.tasks}
    assert parity.verdict is Verdict.PASS and parity.reasons == []
    assert set(verdicts.values()) == {Verdict.PASS} and len(verdicts) == 7
    for task in parity.tasks:
        assert task.difference.difference == pytest.approx(0, abs=1e-3)
        assert task.revision.startswith("local-") and not task.trained_on
    assert parity.candidate == "ort: fp32 on CPU" and parity.hardware


def broken(artifact: Artifact, folder: Path) -> Artifact:
    """Return a copy whose middle layer's 4-bit weights are noise, and whose hashes all hold."""
    shutil.copytree(artifact.folder, folder)
    manifest = artifact.manifest
    graph = onnx.load(folder / manifest.graphs["cpu"], load_external_data=False).graph
    path = folder / "model.onnx.data"
    content = bytearray(path.read_bytes())
    noise = np.random.default_rng(0)
    for tensor in graph.initializer:
        if tensor.name.startswith("layers.1.") and tensor.data_type == onnx.TensorProto.UINT8:
            stored = {entry.key: entry.value for entry in tensor.external_data}
            if stored:
                start, length = int(stored["offset"]), int(stored["length"])
                content[start : start + length] = noise.bytes(length)
    assert content != path.read_bytes()
    path.write_bytes(bytes(content))
    files = {**manifest.files, path.name: hash_file(path)}
    changed = identity(files, manifest.spec, manifest.framing)
    write_manifest(folder, manifest.model_copy(update={"files": files, "artifact_id": changed}))
    return open_artifact(folder, check=True)


@pytest.mark.slow
def test_int4_with_a_broken_layer_fails_before_any_task_is_run(
    model: Path, make_artifact: MakeArtifact, small: Path, tmp_path: Path, capsys: Output
) -> None:
    folder = tmp_path / "broken"
    broken(make_artifact(model, Precision.INT4), folder)
    verify = ["verify", str(folder), "--reference", str(model), "--tier", "quick"]
    verify += ["--task-data", str(small), "--cache", str(tmp_path / "cache"), "--json"]
    assert run(verify) == 1
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert report["verdict"] == "fail" and report["tasks"] is None
    assert re.search(r"mean loss .* \(the worst cosine, .*: no prompt: ", output.err)


def test_vectors_that_are_half_noise_fail(
    intact: Artifact, model: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(artifact: Artifact, **options: Any) -> Encoder:
        encoder = load_encoder(artifact, **options)
        compute = encoder.backend.run

        def run(batch: TokenBatch) -> np.ndarray:
            noise = [np.random.default_rng(ids.sum()).normal(size=encoder.dim) for ids in batch.ids]
            vectors = compute(batch) + 0.2 * np.asarray(noise, np.float32)
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

        monkeypatch.setattr(encoder.backend, "run", run)
        return encoder

    monkeypatch.setattr(models, "load_encoder", noisy)
    parity = judged(intact, model, task_run(small, tmp_path, ["SmallSTS", "SmallPairs"]))
    assert parity.verdict is Verdict.FAIL
    assert "SmallSTS fail: -" in parity.reasons[0]


def test_too_few_texts_are_inconclusive_and_exit_3(
    intact: Artifact, model: Path, tmp_path: Path, capsys: Output
) -> None:
    small_data = write_small_tasks(tmp_path / "few", 12, ["SmallRetrieval", "SmallSTS"])
    verify = ["verify", str(intact.folder), "--reference", str(model), "--tier", "quick"]
    verify += [
        "--task-data",
        str(small_data),
        "--cache",
        str(tmp_path / "cache"),
        "--margin",
        "1e-9",
    ]
    assert run([*verify, "--backend", "ort"]) == 3
    output = capsys.readouterr()
    assert re.search(r"SmallRetrieval +ndcg_at_10 .* inconclusive", output.out)
    assert output.err.startswith("anna-export: expected enough texts to tell")
    assert output.err.count("\n") == 1


@pytest.mark.slow
def test_every_text_is_embedded_once_and_a_second_run_embeds_none(
    intact: Artifact, model: Path, every_kind: EveryKind
) -> None:
    first, stages = every_kind.parity, every_kind.stages
    texts = first.texts
    assert texts.requested > texts.distinct
    assert (
        texts.embedded_reference
        == texts.embedded_again
        == texts.embedded_candidate
        == texts.distinct
    )
    for name in ("reference", "reference again", "artifact"):
        assert stages.reports[name][0] == (0, texts.distinct)
        assert stages.reports[name][-1] == (texts.distinct, texts.distinct)
    second = judged(intact, model, every_kind.run, alike=True)
    assert second.texts.embedded_reference == second.texts.embedded_candidate == 0
    assert second.tasks == first.tasks and second.mean == first.mean


@pytest.mark.slow
def test_verdicts_are_stored_with_results_and_kept_by_a_later_vectors_tier(
    intact: Artifact, model: Path, small: Path, tmp_path: Path, capsys: Output
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(intact.folder, copy)
    verify = ["verify", str(copy), "--reference", str(model)]
    tasks = ["--task", "SmallSTS", "--task", "SmallPairs", "--task-data", str(small)]
    tasks += [
        "--margin",
        str(MARGIN),
        "--trained-on",
        "sts-benchmark",
        "--cache",
        str(tmp_path / "c"),
    ]
    tasks += ["--trained-on", "mteb/SmallSTS"]
    assert run([*verify, *tasks]) == 0
    output = capsys.readouterr().out
    assert re.search(r"SmallSTS\* +cosine_spearman .* pass\n", output)
    assert "* the model was trained on data of this task" in output
    opened = open_artifact(copy, check=True)
    proof = read_parity(opened)
    assert proof is not None and proof.tasks is not None and proof.verdict == "pass"
    assert [task.trained_on for task in proof.tasks.tasks] == [True, False]
    card = (copy / "README.md").read_text()
    assert "### Tasks: pass" in card and "| SmallSTS* | cosine_spearman |" in card
    (result,) = copy.glob("mteb/results/anna-export__*/*/SmallSTS.json")
    content = json.loads(result.read_text())
    (entry,) = content["scores"]["test"]
    assert content["task_name"] == "SmallSTS" and entry["main_score"] == pytest.approx(
        proof.tasks.tasks[0].difference.candidate, abs=1e-6
    )
    assert str(result.relative_to(copy)) in opened.manifest.evidence
    assert run(verify) == 0
    stored = read_parity(open_artifact(copy))
    assert stored is not None and stored.tasks == proof.tasks
    assert run(["inspect", str(copy)]) == 0
    assert re.search(r"tasks +pass: 2 tasks", capsys.readouterr().out)


def test_an_artifact_that_changes_meanwhile_is_refused(
    intact: Artifact, model: Path, small: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(intact.folder, copy)
    opened = open_artifact(copy)

    def stage(name: str, unit: str) -> AbstractContextManager[Progress | None]:
        if name == "artifact":
            manifest = opened.manifest
            prompts = replace(manifest.prompts, default=None, by_name={})
            changed = replace(manifest.spec, norm_eps=2 * manifest.spec.norm_eps)
            changes = {
                "spec": changed,
                "prompts": prompts,
                "artifact_id": identity(manifest.files, changed, manifest.framing),
            }
            write_manifest(copy, manifest.model_copy(update=changes))
        return nullcontext()

    with pytest.raises(InputError, match=r"expected .* to stay as it is, found it changed since"):
        judged(opened, model, task_run(small, tmp_path, ["SmallSTS"]), stage=stage)


def test_a_score_that_cannot_be_taken_apart_is_refused_before_anything_is_embedded(
    intact: Artifact, tmp_path: Path
) -> None:
    metrics = {"SmallSTS": {"main_score": "pearson"}, "SmallRetrieval": {"main_score": "mrr_at_10"}}
    for name, metadata in metrics.items():
        folder = write_small_tasks(tmp_path / name, 20, [name])
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest[name]["metadata"] |= metadata
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UnsupportedError, match=rf"as the main score of {name}, found"):
            plan(intact, task_run(folder, tmp_path / "cache"))
    for name, reason in {
        "Tatoeba": "of type BitextMining; leave it out",
        "TwentyNewsgroupsClustering": "older kind of clustering; TwentyNewsgroupsClustering.v2 is",
        "CQADupstackRetrieval": "which is several; name them one by one",
    }.items():
        with pytest.raises(UnsupportedError, match=reason):
            plan(intact, TaskRun(sources(None, [name], None), "chosen", tmp_path / "cache"))


def test_nothing_is_embedded_where_data_is_missing(
    intact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sts12 = TaskRun(sources(None, ["STS12"], None), "chosen", tmp_path)
    with pytest.raises(MissingError, match=r"expected the data of STS12 .* `task_data`"):
        plan(intact, sts12)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "SmallST"], r"found 'SmallST'; did you mean SmallSTS"),
        (["--task", "SmallSTS", "--tier", "quick"], r"expected --task or --tier"),
        (["--tier", "quick", "--margin", "nan"], r"expected a margin"),
        (["--tier", "quick", "--margin", "-1"], r"expected a margin"),
        (["--tier", "quick", "--task-prompts", "absent.json"], r"expected a file of prompts"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str],
    message: str,
    intact: Artifact,
    model: Path,
    small: Path,
    capsys: Output,
) -> None:
    verify = ["verify", str(intact.folder), "--reference", str(model), "--task-data", str(small)]
    assert run([*verify, *arguments]) == 2
    output = capsys.readouterr()
    assert re.search(message, output.err) and output.err.count("\n") == 1 and not output.out


def test_a_reference_of_another_width_is_refused(
    intact: Artifact, make_model: MakeModel, small: Path, tmp_path: Path, capsys: Output
) -> None:
    other = make_model(hidden_size=32)
    verify = ["verify", str(intact.folder), "--reference", str(other), "--task", "SmallSTS"]
    assert run([*verify, "--task-data", str(small), "--cache", str(tmp_path)]) == 2
    assert "expected a reference with dim" in capsys.readouterr().err


def test_proof_of_another_schema_gives_way(intact: Artifact, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(intact.folder, copy)
    assert run(["verify", str(copy), "--reference", str(model)]) == 0
    manifest = open_artifact(copy).manifest
    (copy / PARITY_FILE).write_text('{"verdict": "pass"}')
    entry = manifest.evidence[PARITY_FILE].model_copy(
        update=hash_file(copy / PARITY_FILE).model_dump()
    )
    write_manifest(
        copy, manifest.model_copy(update={"evidence": {**manifest.evidence, PARITY_FILE: entry}})
    )
    assert run(["inspect", str(copy)]) == 2
    assert run(["verify", str(copy), "--reference", str(model)]) == 0
    assert run(["inspect", str(copy)]) == 0
