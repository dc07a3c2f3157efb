"""anna-train plan."""

from pathlib import Path
from typing import Any

import click

from anna_export.console import commands, output


@click.command("plan", cls=commands.Verb, example="anna-train plan --config recipe.yaml")
@click.option("--config", type=commands.path, required=True, help="Recipe (YAML) to plan.")
@click.option("--out", type=commands.path, help="Write the batch plan (parquet).")
@click.option("--against", type=commands.path, help="A batch plan to compare with.")
@output.json_option
def command(config: Path, out: Path | None, against: Path | None, as_json: bool) -> None:
    """Forecast memory, mini-batch, steps and truncated texts of a recipe.

    With --against it prints where the two batch plans first differ; the exit code is then 1.
    """
    import torch

    from anna_train.plan.batch_plan import BatchPlan, first_difference
    from anna_train.recipe import read_tune_recipe
    from anna_train.run.prepare import prepare

    other = None if against is None else BatchPlan.read(against)
    recipe = read_tune_recipe(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepared = prepare(recipe, output.stage, device)
    plan, memory = prepared.plan, prepared.forecast
    if out is not None:
        plan.write(out)
    difference = None if other is None else first_difference(plan, other)
    summary: dict[str, Any] = {
        "steps": len(plan),
        "rows": plan.table.num_rows,
        "rows_cut": plan.rows_cut,
        "mini_batch_tokens": memory.mini_batch_tokens,
        "bytes": {
            "weights": memory.weights,
            "adapter": memory.adapter,
            "activations": memory.activations,
            "libraries": memory.libraries,
            "total": memory.total,
        },
        "device": device.type,
    }
    if against is not None:
        summary["difference"] = difference
    if as_json:
        output.print_json(summary)
    else:
        output.print_rows(_rows(summary))
    if difference is not None:
        raise click.exceptions.Exit(1)


def _rows(summary: dict[str, Any]) -> dict[str, str]:
    parts = {name: output.size(size_bytes) for name, size_bytes in summary["bytes"].items()}
    rows = {
        "steps": f"{summary['steps']:,}",
        "rows": f"{summary['rows']:,}, of {summary['rows_cut']:,} a text is cut to its limit",
        "mini-batch": f"{summary['mini_batch_tokens']:,} tokens",
        "memory": f"{parts['total']} on {summary['device']}: weights {parts['weights']}, adapter "
        f"and optimizer {parts['adapter']}, activations {parts['activations']}, libraries "
        f"{parts['libraries']}",
    }
    if "difference" in summary:
        rows["difference"] = summary["difference"] or "none"
    return rows
