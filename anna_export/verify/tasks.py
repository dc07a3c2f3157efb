"""Hold an artifact to its reference on mteb's tasks: plan, embed, score, compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mteb.models.model_meta import ModelMeta

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import Manifest
from anna_export.errors import InputError
from anna_export.machine.hardware import hardware
from anna_export.machine.versions import installed
from anna_export.progress import Stage, no_stage
from anna_export.text.prompts import Prompt
from anna_export.verify.contamination import was_trained_on
from anna_export.verify.demand import Demand
from anna_export.verify.models import Model, open_models
from anna_export.verify.mteb_model import MtebModel
from anna_export.verify.published import summary
from anna_export.verify.samples import require_aligned
from anna_export.verify.scoring import Scored, ask, score
from anna_export.verify.statistics import compare_scores, judge, over_all
from anna_export.verify.stored_encoder import StoredEncoder
from anna_export.verify.task_data import TaskSource
from anna_export.verify.task_parity import TaskParity, TaskResult, Texts, reasons_of
from anna_export.verify.task_prompts import TaskPrompts, find_prompt
from anna_export.verify.vector_store import open_store


@dataclass(frozen=True, slots=True)
class TaskRun:
    """What was asked for.

    Args:
        tasks: The tasks.
        tier: What this choice of them is called.
        cache: The folder of vectors that are embedded already, and of mteb's result files.
        margin: What a score may lose, in its own unit; None: max(0.5 % of it, 0.002).
        prompts: Prompts by mteb task, in place of those that ship.
        trained_on: Names of data the model was trained on.
    """

    tasks: Sequence[TaskSource]
    tier: str
    cache: Path
    margin: float | None = None
    prompts: TaskPrompts | None = None
    trained_on: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Compared:
    """A verdict, and mteb's result files of the artifact, by task."""

    parity: TaskParity
    results: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class _Run:
    """One model on every task."""

    told: str  # its runtime and arithmetic
    embedded: int
    scores: Mapping[str, Scored]


def compare_tasks(
    artifact: Artifact,
    model: Path,
    adapter: Path | None,
    asked: TaskRun,
    demand: Demand,
    stage: Stage = no_stage,
    *,
    alike: bool = False,
    backend: str = "auto",
    device: str = "auto",
) -> Compared:
    """Score the reference, the reference again, and the artifact, and judge the differences.

    Every distinct text with its prompt is embedded once by each; what an earlier run embedded,
    killed or not, is not embedded again.

    Args:
        artifact: What is judged.
        model: The base model's folder.
        adapter: The LoRA adapter's folder.
        asked: The tasks, and how they are run.
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
    runs = []
    for one in open_models(artifact, model, adapter, backend, device, stage):
        runs.append(_score(one, artifact.manifest, demand, asked, stage))
        del one  # before the next is loaded
    reference, again, candidate = runs
    _require_unchanged(artifact)
    parity = _judge(asked, demand, reference, again, candidate, alike=alike)
    return Compared(parity, {name: one.result for name, one in candidate.scores.items()})


def plan(artifact: Artifact, asked: TaskRun, stage: Stage = no_stage) -> Demand:
    """Find out what tasks will ask for.

    Raises:
        MissingError: If a task's data is not here.
    """
    demand = Demand()
    find = _finder(artifact.manifest, asked)
    asking = MtebModel(demand.embed, find, ModelMeta.create_empty({}))
    with stage("plan", "tasks") as progress:
        for done, source in enumerate(asked.tasks, start=1):
            ask(source, asking)
            if progress is not None:
                progress(done, len(asked.tasks))
    return demand


def _score(model: Model, manifest: Manifest, demand: Demand, asked: TaskRun, stage: Stage) -> _Run:
    find = _finder(manifest, asked)
    encoder = model.encoder
    with (
        open_store(asked.cache / "vectors", model.identity, encoder.dim) as store,
        stage(model.name, "texts") as progress,
    ):
        stored = StoredEncoder(encoder, store, model.prefixes, shuffled=model.shuffled)
        stored.expect(demand.missing(stored), progress)
        seen = MtebModel(stored.embed, find, model.meta)
        results = asked.cache / "results" / model.name
        scores = {source.name: score(source, seen, results) for source in asked.tasks}
        return _Run(model.told, stored.embedded, scores)


def _finder(manifest: Manifest, asked: TaskRun) -> Callable[[str, str, str | None], Prompt]:
    def find(task: str, kind: str, side: str | None) -> Prompt:
        return find_prompt(task, kind, side, manifest.prompts, asked.prompts)

    return find


def _judge(
    asked: TaskRun,
    demand: Demand,
    reference: _Run,
    again: _Run,
    candidate: _Run,
    *,
    alike: bool,
) -> TaskParity:
    differences, replicates = {}, {}
    for source in asked.tasks:
        name = source.name
        told = [run.scores[name].samples for run in (reference, candidate, again)]
        for subset in told[0]:
            require_aligned(name, *(samples[subset] for samples in told))
        differences[name], replicates[name] = compare_scores(
            name, *(list(samples.values()) for samples in told), margin=asked.margin, alike=alike
        )
    verdicts = judge(differences)
    mean, verdict = over_all(verdicts, differences, replicates, asked.margin)
    tasks = [
        TaskResult(
            name,
            metadata.type,
            metadata.main_score,
            metadata.dataset["revision"],
            verdicts[name],
            differences[name],
            was_trained_on(asked.trained_on, name, source.base, metadata.dataset["path"]),
        )
        for source in asked.tasks
        for name, metadata in [(source.name, source.build().metadata)]
    ]
    return TaskParity(
        verdict=verdict,
        reasons=reasons_of(tasks, mean),
        tier=asked.tier,
        tasks=tasks,
        mean=mean,
        summary=summary(
            {task.name: task.difference.candidate for task in tasks},
            {task.name: task.type for task in tasks},
            local=any(source.folder is not None for source in asked.tasks),
        ),
        texts=Texts(
            demand.requested,
            demand.distinct,
            reference.embedded,
            again.embedded,
            candidate.embedded,
        ),
        reference=reference.told,
        candidate=candidate.told,
        hardware=hardware(),
        versions=installed(),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _require_unchanged(artifact: Artifact) -> None:
    """Refuse a verdict on an artifact that is not the one the run started with."""
    now = open_artifact(artifact.folder).manifest
    before = artifact.manifest
    if (now.artifact_id, now.prefixes, now.prompts) != (
        before.artifact_id,
        before.prefixes,
        before.prompts,
    ):
        raise InputError(
            f"expected {artifact.folder} to stay as it is, found it changed since the run started; "
            "run it again"
        )
