"""What verify does: plan, compare vectors, and only then tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anna_export.artifact.folder import Artifact
from anna_export.files.model_folders import Adapters
from anna_export.progress import Stage, no_stage
from anna_export.verify.parity_report import ParityReport, Verdict
from anna_export.verify.prove import prove

if TYPE_CHECKING:
    from anna_export.verify.tasks import TaskRun

# Vectors whose worst cosine is at least this are the reference's but for rounding.
ALIKE_COSINE: Final = 0.999999


@dataclass(frozen=True, slots=True)
class Verification:
    """The parity report, and the files of mteb's cache of the results, by path in it."""

    report: ParityReport
    results: Mapping[str, str]


def verify(
    artifact: Artifact,
    model: Path,
    adapter: Adapters = None,
    tasks: "TaskRun | None" = None,
    stage: Stage = no_stage,
    *,
    backend: str = "auto",
    device: str = "auto",
) -> Verification:
    """Compare an artifact with base and adapter: its vectors, and if they pass, scores on tasks.

    Args:
        artifact: The artifact that is judged.
        model: The base model's folder.
        adapter: The LoRA adapter's folder, or several in the order they are merged in.
        tasks: The tasks to score; None to compare vectors only.
        stage: Shows each stage.
        backend: As `open_encoder`.
        device: As `open_encoder`.

    Raises:
        AnnaError: If a model or the tasks' data cannot be used.
    """
    if tasks is not None:
        # mteb takes seconds to load: only who runs tasks waits for it
        from anna_export.verify.tasks import compare_tasks, plan

        demand = plan(artifact, tasks, stage)
    with stage("compare vectors", "texts") as progress:
        vectors = prove(artifact, model, adapter, progress, backend=backend, device=device)
    if tasks is None or vectors.verdict is not Verdict.PASS:
        return Verification(ParityReport(vectors), {})
    compared = compare_tasks(
        artifact,
        model,
        adapter,
        tasks,
        demand,
        stage,
        alike=vectors.worst_cosine >= ALIKE_COSINE,
        backend=backend,
        device=device,
    )
    return Verification(ParityReport(vectors, compared.parity), compared.results)
