"""`anna-train tune`: a recipe to an adapter, in steps that a compiled plan names."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Final

import torch

from anna_export.console.quiet import quiet_libraries
from anna_export.files.atomic import require_absent, staged
from anna_export.files.locks import sole_writer
from anna_export.progress import Stage, no_stage
from anna_train.model.trained_model import TrainedModel, load_model
from anna_train.plan.batch_plan import made_from
from anna_train.recipe import RunRecipe, TuneRecipe
from anna_train.run.adapter_card import TuneReport
from anna_train.run.adapter_folder import ADAPTER_FILE, with_examples, write_adapter
from anna_train.run.evaluation import evaluate
from anna_train.run.gradient import GradientSettings
from anna_train.run.prepare import Prepared, prepare
from anna_train.run.processes import Processes, joined
from anna_train.run.step import LOGGED, take_step
from anna_train.run.training_log import TrainingLog, read_log
from anna_train.run.training_state import RunFolder

PLAN_FILE: Final = "plan.parquet"
LOG_FILE: Final = "log.csv"
EVALUATIONS_FILE: Final = "evaluations.csv"


def tune(
    recipe: TuneRecipe, out: Path, stage: Stage, *, overwrite: bool = False, restart: bool = False
) -> TuneReport:
    """Train an adapter and write its folder; goes on where a run of the same recipe was stopped.

    Args:
        recipe: What is asked.
        out: The adapter's folder; the run is kept in `OUT.training` until it is finished.
        stage: Shows the steps; used by the first process alone.
        overwrite: Whether a finished adapter may be replaced.
        restart: Whether an unfinished run is thrown away.

    Raises:
        AnnaError: If anything cannot be used as it is.
        DivergedError: If the loss is not finite; the last checkpoint is kept.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(joined())
        stack.enter_context(quiet_libraries())
        stack.enter_context(_threads(recipe.run.threads))
        if not processes.first:
            stage = no_stage
        require_absent(out, overwrite=overwrite, holding=ADAPTER_FILE)
        folder = out.with_name(f"{out.name}.training")
        if processes.first:
            if restart:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_if_empty, folder)  # where nothing could be begun
            stack.enter_context(sole_writer(folder, out))
        processes.wait()
        prepared = prepare(recipe, stage, processes.device, folder / PLAN_FILE)
        run = RunFolder(folder)
        processes.wait()  # all have looked for the plan
        if processes.first:
            run.begin(
                {"recipe": recipe.learnt_from(), **made_from(recipe, list(prepared.sets.values()))}
            )
            if not (folder / PLAN_FILE).exists():
                prepared.plan.write(folder / PLAN_FILE)
        model = load_model(prepared.base, recipe, processes.device)
        report = _train(recipe, prepared, model, run, processes, stage)
        if processes.first:
            _write_output(recipe, prepared, model, run, out, report, overwrite=overwrite)
        processes.wait()
    return report


def _train(
    recipe: TuneRecipe,
    prepared: Prepared,
    model: TrainedModel,
    run: RunFolder,
    processes: Processes,
    stage: Stage,
) -> TuneReport:
    """Take every step that is not done yet."""
    weights, steps = model.weights(), len(prepared.plan)
    optimizer = torch.optim.AdamW(
        weights.values(),
        lr=recipe.optimizer.learning_rate,
        weight_decay=recipe.optimizer.weight_decay,
    )
    done = run.load(weights, optimizer)
    tokens = _mini_batch_tokens(recipe, prepared, run, processes)
    settings = GradientSettings(tokens, recipe.run.recompute, recipe.run.precision == "bf16")
    names = tuple(data.name for data in prepared.held_out_sets)
    log = partial(_log, run.folder, recipe.run, processes)
    with (
        stage("tune", "steps") as progress,
        log(LOG_FILE, (*LOGGED, "seconds"), done) as losses,
        # what stands at the last checkpoint is measured again
        log(EVALUATIONS_FILE, names, done - 1) as evaluations,
    ):
        for step in range(done, steps + 1):
            last = step == steps
            if names and (last or step % recipe.evaluation.every == 0):
                figures = evaluate(model.inner, prepared.held_out_sets, settings, processes)
                if evaluations is not None:
                    evaluations.write(step, figures)
            if last:
                break
            started = time.perf_counter()
            values = take_step(recipe, prepared, model, optimizer, step, settings, processes)
            if losses is not None:
                losses.write(step + 1, {**values, "seconds": time.perf_counter() - started})
            if processes.first and (step + 1) % recipe.run.checkpoint_every == 0:
                run.save(step + 1, weights, optimizer)
            if progress is not None:
                progress(step + 1, steps)
    processes.wait()  # the logs are written
    return _report(recipe, prepared, run, names, processes)


def _mini_batch_tokens(
    recipe: TuneRecipe, prepared: Prepared, run: RunFolder, processes: Processes
) -> int:
    """Return what fits on every process's device, and is what the run began with."""
    tokens = processes.smallest(prepared.forecast.mini_batch_tokens)
    if processes.first and recipe.run.mini_batch_tokens is None:
        tokens = run.same_mini_batch(tokens)
    return processes.of_first(tokens)


def _write_output(
    recipe: TuneRecipe,
    prepared: Prepared,
    model: TrainedModel,
    run: RunFolder,
    out: Path,
    report: TuneReport,
    *,
    overwrite: bool,
) -> None:
    """Write the adapter's folder, the run's plan and logs in it, and remove the run."""
    tasks = with_examples(prepared.tasks, prepared.examples)
    with staged(out, overwrite=overwrite, holding=ADAPTER_FILE) as folder:
        write_adapter(folder, model.adapted, prepared.base, recipe, tasks, report)
        (folder / "training").mkdir()
        for path in sorted(run.folder.iterdir()):
            if path.name in (PLAN_FILE, LOG_FILE, EVALUATIONS_FILE):
                shutil.copyfile(path, folder / "training" / path.name)
            elif path.is_dir():  # TensorBoard's
                shutil.copytree(path, folder / "training" / path.name)
    shutil.rmtree(run.folder)


def _report(
    recipe: TuneRecipe,
    prepared: Prepared,
    run: RunFolder,
    names: Sequence[str],
    processes: Processes,
) -> TuneReport:
    rows = read_log(run.folder / EVALUATIONS_FILE)
    seconds = sum(float(row["seconds"]) for row in read_log(run.folder / LOG_FILE))
    return TuneReport(
        len(prepared.plan),
        recipe.batch.queries,
        {name: (len(data), data.sha256) for name, data in prepared.sets.items()},
        {name: (float(rows[0][name]), float(rows[-1][name])) for name in names},
        seconds,
        processes.first,
    )


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _log(
    folder: Path,
    recipe: RunRecipe,
    processes: Processes,
    name: str,
    columns: tuple[str, ...],
    done: int,
) -> AbstractContextManager[TrainingLog | None]:
    """Open a log, which the first process writes."""
    if not processes.first:
        return nullcontext()
    board = folder / "tensorboard" if recipe.tensorboard else None
    return TrainingLog(folder / name, columns, done, board)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute in so many threads inside the block: the order of a sum depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
