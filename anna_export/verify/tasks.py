"""Hold an artifact to its reference on mteb's tasks: plan, embed, score, compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from mteb.models.model_meta import ModelMeta

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import Manifest
from anna_export.errors import InputError
from anna_export.files.model_folders import Adapters
from anna_export.files.vector_store import open_store
from anna_export.machine.hardware import hardware
from anna_export.machine.versions import installed
from anna_export.progress import Stage, no_stage
from anna_export.text.prompts import Prompt
from anna_export.verify.contamination import was_trained_on
from anna_export.verify.demand import Demand
from anna_export.verify.models import Model, open_models
from anna_export.verify.mteb_model import NO_ID, ModelId, MtebModel
from anna_export.verify.parity_report import (
    Difference,
    TaskParity,
    TaskResult,
    TaskTexts,
    Verdict,
)
from anna_export.verify.published import summary
from anna_export.verify.samples import require_aligned
from anna_export.verify.scoring import Scored, ask, score
from anna_export.verify.statistics import compare_scores, judge, over_all
from anna_export.verify.stored_encoder import StoredEncoder
from anna_export.verify.task_data import TaskSource
from anna_export.verify.task_prompts import TaskPrompts, find_prompt


@dataclass(frozen=True, slots=True)
class TaskRun:
    """The tasks to run, and how.

    Args:
        tasks: The tasks.
        tier: What this choice of them is called.
        cache: The folder of vectors that earlier runs embedded.
        margin: What a score may lose, in its own unit; None: max(0.5 % of it, 0.002).
        prompts: Prompts by mteb task, in place of those that ship.
        trained_on: Names of data the model was trained on.
        model_id: What mteb files the artifact's results under.
    """

    tasks: Sequence[TaskSource]
    tier: str
    cache: Path
    margin: float | None = None
    prompts: TaskPrompts | None = None
    trained_on: frozenset[str] = field(default_factory=frozenset)
    model_id: ModelId = NO_ID


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """A verdict, and the JSON files of mteb's cache of the artifact's results, by path in it."""

    parity: TaskParity
    results: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Run:
    """One model's scores on every task."""

    label: str  # its runtime, and what that computes in
    embedded: int
    scores: Mapping[str, Scored]
    results: Mapping[str, str]  # mteb's files, by path in its cache


@dataclass(frozen=True, slots=True)
class _Runs:
    """The three runs that are compared."""

    reference: _Run
    again: _Run  # the reference, in other batches
    candidate: _Run


def compare_tasks(
    artifact: Artifact,
    model: Path,
    adapter: Adapters,
    run: TaskRun,
    demand: Demand,
    stage: Stage = no_stage,
    *,
    alike: bool = False,
    backend: str = "auto",
    device: str = "auto",
) -> TaskComparison:
    """Score the reference, the reference again, and the artifact, and judge the differences.

    Every distinct text with its prompt is embedded once by each; what an earlier run embedded,
    killed or not, is not embedded again.

    Args:
        artifact: The artifact that is judged.
        model: The base model's folder.
        adapter: The LoRA adapter's folder, or several in the order they are merged in.
        run: The tasks, and how they are run.
        demand: What `plan` found they ask for.
        stage: Shows each stage.
        alike: Whether the artifact's vectors are known to be the reference's but for rounding.
        backend: As `open_encoder`.
        device: As `open_encoder`.

    Raises:
        SpaceError: If memory does not hold a model, or the disk its vectors.
        InputError: If the artifact changes meanwhile.
        AnnaError: If base or adapter cannot be used.
    """
    scored = []
    for opened in open_models(artifact, model, adapter, backend, device, stage, run.model_id):
        scored.append(_score(opened, artifact.manifest, demand, run, stage))
        del opened  # before the next is loaded
    models = _Runs(*scored)
    _require_unchanged(artifact)
    return TaskComparison(_judge(run, demand, models, alike=alike), models.candidate.results)


def plan(artifact: Artifact, run: TaskRun, stage: Stage = no_stage) -> Demand:
    """Find out what tasks will ask for.

    Raises:
        MissingError: If a task's data is not here.
    """
    demand = Demand()
    find = _finder(artifact.manifest, run)
    asking = MtebModel(demand.embed, find, ModelMeta.create_empty({}))
    with stage("plan", "tasks") as progress:
        for done, source in enumerate(run.tasks, start=1):
            ask(source, asking)
            if progress is not None:
                progress(done, len(run.tasks))
    return demand


def _score(model: Model, manifest: Manifest, demand: Demand, run: TaskRun, stage: Stage) -> _Run:
    find = _finder(manifest, run)
    encoder = model.encoder
    with (
        open_store(run.cache / "vectors", model.identity, encoder.dim) as store,
        stage(model.name, "texts") as progress,
        TemporaryDirectory(prefix="anna-export-mteb-") as results,
    ):
        stored = StoredEncoder(encoder, store, model.prefixes, shuffled=model.shuffled)
        stored.expect(demand.missing(stored), progress)
        mteb_model = MtebModel(stored.embed, find, model.meta)
        folder = Path(results)
        scores = {source.name: score(source, mteb_model, folder) for source in run.tasks}
        files = {
            path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
            for path in sorted(folder.rglob("*.json"))
        }
        return _Run(model.label, stored.embedded, scores, files)


def _finder(manifest: Manifest, run: TaskRun) -> Callable[[str, str, str | None], Prompt]:
    def find(task: str, kind: str, side: str | None) -> Prompt:
        return find_prompt(task, kind, side, manifest.prompts, run.prompts)

    return find


def _judge(run: TaskRun, demand: Demand, models: _Runs, *, alike: bool) -> TaskParity:
    differences, replicates = {}, {}
    for source in run.tasks:
        differences[source.name], replicates[source.name] = _compare(
            source.name, models, run.margin, alike=alike
        )
    verdicts = judge(differences)
    mean, verdict = over_all(verdicts, differences, replicates, run.margin)
    tasks = [
        _result(source, verdicts[source.name], differences[source.name], run.trained_on)
        for source in run.tasks
    ]
    return TaskParity(
        verdict=verdict,
        reasons=_reasons(tasks, mean),
        tier=run.tier,
        tasks=tasks,
        mean=mean,
        summary=summary(
            {task.name: task.difference.candidate for task in tasks},
            {task.name: task.type for task in tasks},
            local=any(source.folder is not None for source in run.tasks),
        ),
        texts=TaskTexts(
            demand.requested,
            demand.distinct,
            models.reference.embedded,
            models.again.embedded,
            models.candidate.embedded,
        ),
        reference=models.reference.label,
        candidate=models.candidate.label,
        hardware=hardware(),
        versions=installed(),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _compare(
    task: str, models: _Runs, margin: float | None, *, alike: bool
) -> tuple[Difference, np.ndarray]:
    """Return the difference on a task, and its replicates."""
    reference, candidate, again = (
        model.scores[task].samples for model in (models.reference, models.candidate, models.again)
    )
    for subset in reference:
        require_aligned(task, reference[subset], candidate[subset], again[subset])
    return compare_scores(
        task,
        list(reference.values()),
        list(candidate.values()),
        list(again.values()),
        margin=margin,
        alike=alike,
    )


def _result(
    source: TaskSource, verdict: Verdict, difference: Difference, trained_on: frozenset[str]
) -> TaskResult:
    metadata = source.build().metadata
    return TaskResult(
        name=source.name,
        type=metadata.type,
        metric=metadata.main_score,
        revision=metadata.dataset["revision"],
        verdict=verdict,
        difference=difference,
        trained_on=was_trained_on(trained_on, source.name, source.base, metadata.dataset["path"]),
    )


def _reasons(tasks: Sequence[TaskResult], mean: Difference) -> list[str]:
    """Say, a line each, why tasks are not a pass."""
    reasons = [
        f"{task.name} {task.verdict}: {_interval(task.difference)}"
        for task in tasks
        if task.verdict is not Verdict.PASS
    ]
    if not mean.low > -mean.margin:
        reasons.append(f"mean over tasks: {_interval(mean)}")
    return reasons


def _interval(difference: Difference) -> str:
    return (
        f"{difference.difference:+.4f} ({difference.low:+.4f} to {difference.high:+.4f}), margin "
        f"{difference.margin:.4f}"
    )


def _require_unchanged(artifact: Artifact) -> None:
    """Refuse a verdict on an artifact that is not the one the run started with."""
    current = open_artifact(artifact.folder).manifest
    before = artifact.manifest
    if (current.artifact_id, current.prefixes, current.prompts) != (
        before.artifact_id,
        before.prefixes,
        before.prompts,
    ):
        raise InputError(
            f"expected {artifact.folder} to stay as it is, found it changed since the run started; "
            "run it again"
        )
