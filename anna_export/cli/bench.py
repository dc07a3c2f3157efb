"""anna-export bench."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anna_export.cli import options
from anna_export.console import commands, output

if TYPE_CHECKING:
    from anna_export.bench.result import ClosedLoop, OpenLoop, Run


def _numbers(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise click.BadParameter(f"expected whole numbers such as 1,8,32, found {value!r}")
    return tuple(dict.fromkeys(map(int, parts)))


@click.command(
    "bench", cls=commands.Verb, example="anna-export bench artifact --against pytorch --rate 20"
)
@options.artifact_argument
@click.option(
    "--batch",
    "batches",
    default="1,8",
    show_default=True,
    callback=_numbers,
    help="Texts of a batch.",
)
@click.option(
    "--length",
    "lengths",
    default="32,128",
    show_default=True,
    callback=_numbers,
    help="Tokens of a text, without its prompt.",
)
@click.option(
    "--rate",
    "rates",
    type=float,
    multiple=True,
    help="Texts a second that arrive one by one, at times drawn as a Poisson process; repeatable.",
)
@click.option(
    "--rounds",
    type=int,
    default=6,
    show_default=True,
    help="Rounds over all shapes, divided among three starts; intervals are over rounds.",
)
@click.option("--prompt", help="Name of the prompt in front of every text; empty for none.")
@click.option(
    "--against",
    metavar="BASELINE",
    help="Baseline to compare with, round by round: pytorch, sentence-transformers (with --model), "
    "openvino, another artifact's folder, or the URL of a server with OpenAI's or TEI's routes.",
)
@click.option("--model", type=commands.folder, help="Model folder for sentence-transformers.")
@click.option("--threads", type=int, help="CPU threads. Default: one a core.")
@options.backend_option
@options.device_option
@output.json_option
def command(artifact: Path, as_json: bool, **chosen: Any) -> None:
    """Time an artifact: batches in a closed loop, single texts in an open loop.

    bench first checks the artifact's vectors, and a baseline's against them, and times nothing that
    fails. It stores raw times and the hardware in the artifact's bench.json. It reads a baseline's
    API key from ANNA_BENCH_API_KEY.
    """
    from anna_export.artifact.folder import open_artifact
    from anna_export.bench.flow import bench
    from anna_export.bench.options import BenchOptions
    from anna_export.bench.result import BENCH_FILE, add_run
    from anna_export.report.card import add_card

    choice = BenchOptions(**chosen)
    plan, opened = choice.plan, open_artifact(artifact)
    baseline = choice.open_baseline(opened)
    run = bench(opened, choice.open(opened), plan, baseline, output.stage)
    add_card(add_run(opened, run))
    if as_json:
        output.print_json(run.model_dump(mode="json"))
    else:
        render_run(run)
        output.print_rows({"written to": str(artifact / BENCH_FILE)})


def render_run(run: "Run") -> None:
    """Print what was timed, as tables."""
    output.print_rows(
        {
            "artifact": f"{run.name}, {run.compute}",
            "on": run.environment.hardware,
            "batch size 1 and batch": f"worst cosine {run.batch1_worst_cosine:.6f}",
        }
    )
    if run.baseline is not None:
        output.print_rows(
            {
                "baseline": f"{run.baseline.name}, {run.baseline.compute}",
                "its vectors": f"worst cosine {run.baseline.worst_cosine:.5f} to ours",
            }
        )
    percentiles = ["p50 ms", "p90 ms", "p99 ms"]
    heads = ["batch x tokens", *percentiles, "texts/s", "tokens/s", "between"]
    versus = [] if run.baseline is None else ["against it"]
    output.print_table([*heads, *versus], [_closed_loop(row) for row in run.rows])
    if run.open:
        heads = ["texts a second", *percentiles, "kept up"]
        output.print_table(heads, [_open_loop(loop) for loop in run.open])


def _closed_loop(row: "ClosedLoop") -> list[str]:
    texts = row.texts_per_second
    cells = [
        f"{row.batch} x {row.tokens}",
        *_milliseconds(row),
        f"{texts.value:.1f}",
        f"{row.tokens_per_second.value:.0f}",
        f"{texts.low:.1f} and {texts.high:.1f} texts/s",
    ]
    if row.versus is not None:
        ratio = row.versus.ratio
        speed = f"{ratio.value:.2f} x ({ratio.low:.2f} to {ratio.high:.2f})"
        cells.append(f"{speed}: {row.versus.verdict}")
    return cells


def _open_loop(loop: "OpenLoop") -> list[str]:
    kept_up = "yes" if loop.kept_up else "no: the queue grew"
    return [f"{loop.rate:g}", *_milliseconds(loop), kept_up]


def _milliseconds(loop: "ClosedLoop | OpenLoop") -> list[str]:
    return [f"{value:.1f}" for value in (loop.p50_ms, loop.p90_ms, loop.p99_ms)]
