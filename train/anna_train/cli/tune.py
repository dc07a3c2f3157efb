"""anna-train tune."""

from pathlib import Path

import click

from anna_export.console import commands, output


@click.command(
    "tune", cls=commands.Verb, example="anna-train tune --config recipe.yaml --out adapter"
)
@click.option(
    "--config", type=commands.path, required=True, help="Recipe (YAML): base, data, loss, LoRA."
)
@click.option("--out", type=commands.path, required=True, help="Adapter folder to make.")
@commands.overwrite_option
@click.option("--restart", is_flag=True, help="Discard an unfinished run and start again.")
@output.json_option
def command(config: Path, out: Path, overwrite: bool, restart: bool, as_json: bool) -> None:
    """Train a LoRA adapter.

    tune stores the run in OUT.training until it is finished: after Ctrl-C or a crash the same
    command resumes from the last checkpoint, and ends with the weights of a run that never stopped
    (bit by bit, on a CPU). On several GPUs: torchrun --nproc-per-node N -m anna_train tune …
    """
    from anna_train.recipe import read_tune_recipe
    from anna_train.run.tune import tune

    recipe = read_tune_recipe(config)
    tuned = tune(recipe, out, output.stage, overwrite=overwrite, restart=restart)
    if not tuned.first:
        return
    if as_json:
        output.print_json(
            {
                "folder": str(out),
                "steps": tuned.steps,
                "seconds": tuned.seconds,
                "ndcg_at_10": {
                    name: {"before": before, "after": after}
                    for name, (before, after) in tuned.figures.items()
                },
            }
        )
        return
    output.print_rows(
        {
            "adapter": str(out),
            "steps": f"{tuned.steps:,} of {tuned.queries} queries in {tuned.seconds:,.0f} s",
            **{
                name: f"nDCG@10 {before:.4f} -> {after:.4f}"
                for name, (before, after) in tuned.figures.items()
            },
        }
    )
