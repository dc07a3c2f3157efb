"""anna-export verify."""

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from anna_export.cli import options, shown
from anna_export.console import commands, output
from anna_export.errors import ExtraError, InconclusiveError, InputError, ParityError

if TYPE_CHECKING:
    from anna_export.artifact.folder import Artifact
    from anna_export.verify.flow import Verification
    from anna_export.verify.parity_report import ParityReport
    from anna_export.verify.tasks import TaskRun

_TIERS: Final = ("vectors", "quick", "full")


@click.command(
    "verify",
    cls=commands.Verb,
    example="anna-export verify artifact --model base --adapter lora --tier quick",
)
@options.artifact_argument
@click.option(
    "--model",
    "--reference",
    "model",
    type=commands.folder,
    required=True,
    help="Folder of the base model (safetensors), the PyTorch reference.",
)
@options.adapter_option()
@click.option(
    "--tier",
    type=click.Choice(_TIERS),
    help="vectors (the default): cosines over ordinary and odd texts, in padded batches and at "
    "batch size 1; seconds for a small model, minutes for 7 billion parameters. quick: also some "
    "MTEB tasks of every category, or all of --task-data. full: also MTEB(eng, v2), 41 tasks.",
)
@click.option(
    "--task",
    "names",
    multiple=True,
    metavar="NAME",
    help="An mteb task to run instead of a tier's; repeatable.",
)
@click.option(
    "--task-data",
    type=commands.folder,
    help="Folder with a manifest.json of tasks and their data; without it, data comes from the "
    "Hugging Face cache or hub.",
)
@click.option(
    "--task-prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON file of prompts by mteb task; it replaces the e5-mistral instructions that ship. A "
    "prompt of the artifact with the task's name takes precedence. none: no prompts.",
)
@click.option(
    "--margin",
    type=float,
    help="Largest allowed loss of a score, on the score's scale of 0 to 1. Default: 0.5 % of the "
    "reference's score, and at least 0.002.",
)
@click.option(
    "--trained-on",
    multiple=True,
    metavar="NAME",
    help="A task or data set that the model was trained on, besides those in the adapter's card; "
    "the table marks such tasks. Repeatable.",
)
@click.option(
    "--model-name",
    metavar="ORGANISATION/NAME",
    help="Name that mteb files the results under, that of the model on the hub. Default: "
    "anna-export/ with the name of adapter or base, and the precision.",
)
@click.option(
    "--revision",
    help="Revision that mteb files the results under, the model's commit on the hub. Default: the "
    "artifact's id.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that stores computed vectors; an interrupted run resumes from it. Default: "
    "~/.cache/anna-export.",
)
@options.backend_option
@options.device_option
@output.json_option
def command(
    artifact: Path,
    model: Path,
    adapter: tuple[Path, ...],
    backend: str,
    device: str,
    as_json: bool,
    **of_tasks: Any,
) -> None:
    """Compare an artifact with the PyTorch model: its vectors, then its scores on MTEB tasks.

    verify stores its figures in the artifact if the model is the one it was made from. The exit
    code is 1 if vectors or scores differ by more than the threshold, 3 if there are too few texts
    to decide.
    """
    # mteb draws bars of its own with tqdm, which reads this when it is first imported
    os.environ.setdefault("TQDM_DISABLE", "1")
    from anna_export.artifact.folder import open_artifact
    from anna_export.verify.flow import verify

    opened = open_artifact(artifact)
    tasks = _task_run(adapter, **of_tasks)
    verified = verify(opened, model, adapter, tasks, output.stage, backend=backend, device=device)
    stored = _store(opened, verified)
    report = verified.report
    if as_json:
        output.print_json({**report.to_json(), "stored": stored})
    else:
        _print(report, stored)
    _require_pass(report)


def _task_run(
    adapter: tuple[Path, ...],
    *,
    tier: str | None,
    names: tuple[str, ...],
    cache: Path | None,
    **options: Any,
) -> "TaskRun | None":
    """Return the tasks that options ask for; None if they ask for vectors alone."""
    if names and tier:
        raise InputError(f"expected --task or --tier, found --task and --tier {tier}")
    if not names and tier in (None, _TIERS[0]):
        for name, value in options.items():
            if value not in (None, ()):
                raise InputError(
                    f"expected tasks for `{name}`, found none to run; add --tier quick, "
                    "--tier full or --task NAME"
                )
        return None
    margin, prompts = options["margin"], options["task_prompts"]
    if margin is not None and not 0 < margin < 1:
        raise InputError(f"expected a margin above 0 and below 1, found {margin}")
    try:
        import mteb  # noqa: F401
    except ImportError:
        raise ExtraError(
            "expected mteb, which evaluates tasks, found none; install anna-export[eval]"
        ) from None
    from anna_export.files.cache import default_cache
    from anna_export.verify.contamination import datasets_of
    from anna_export.verify.mteb_model import ModelId
    from anna_export.verify.task_data import sources
    from anna_export.verify.task_prompts import read_task_prompts
    from anna_export.verify.tasks import TaskRun

    return TaskRun(
        tasks=sources(tier, names, options["task_data"]),
        tier=tier or "chosen tasks",
        cache=cache or default_cache(),
        margin=margin,
        prompts=read_task_prompts(prompts) if prompts is not None else None,
        trained_on=datasets_of(adapter, options["trained_on"]),
        model_id=ModelId(options["model_name"], options["revision"]),
    )


def _print(report: "ParityReport", stored: str) -> None:
    rows = shown.parity_rows(report.vectors)
    if report.tasks is None:
        output.print_rows(rows | {"stored": stored})
        return
    output.print_rows(rows)
    output.print_line("")
    shown.print_tasks(report.tasks)
    output.print_line("")
    shown.print_standings(report.tasks.summary)
    output.print_line("")
    output.print_rows(shown.task_rows(report.tasks) | {"stored": stored})


def _require_pass(report: "ParityReport") -> None:
    """Turn a verdict into an exit code."""
    if report.verdict == "pass":
        return
    reasons = "; ".join(report.reasons)
    if report.tasks is None:
        raise ParityError(f"expected the reference's vectors, found: {reasons}")
    if report.verdict == "fail":
        raise ParityError(f"expected the reference's scores, found: {reasons}")
    mean = report.tasks.mean
    raise InconclusiveError(
        f"expected enough texts to tell, found a mean over tasks that differs by "
        f"{mean.difference:+.4f} ({mean.low:+.4f} to {mean.high:+.4f}), against a margin of "
        f"{mean.margin:.4f}; run more tasks, or fix a wider --margin beforehand"
    )


def _store(artifact: "Artifact", verified: "Verification") -> str:
    """Store the report in the artifact, if the reference is its own; say where, or why not."""
    from anna_export.artifact.manifest import PARITY_FILE
    from anna_export.report.card import add_parity, add_results
    from anna_export.verify.parity_file import with_earlier_tasks

    report = with_earlier_tasks(verified.report, artifact)
    if not artifact.manifest.source.is_of(report.vectors.reference_sha256):
        return "nowhere: this reference is not what the artifact was made from"
    try:
        add_results(add_parity(artifact, report), verified.results)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return f"nowhere: {artifact.folder} may not be written to"
    return str(artifact.folder / PARITY_FILE)
