"""anna-export bench."""

from pathlib import Path

import click

from anna_export.cli import options
from anna_export.console import commands, output


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
def command(
    artifact: Path,
    batches: tuple[int, ...],
    lengths: tuple[int, ...],
    rates: tuple[float, ...],
    rounds: int,
    prompt: str | None,
    against: str | None,
    model: Path | None,
    threads: int | None,
    backend: str,
    device: str,
    as_json: bool,
) -> None:
    """Time an artifact: batches in a closed loop, single texts in an open loop.

    bench first checks the artifact's vectors, and a baseline's against them, and times nothing that
    fails. It stores raw times and the hardware in the artifact's bench.json. It reads a baseline's
    API key from ANNA_BENCH_API_KEY.
    """
    from anna_export.artifact.folder import open_artifact
    from anna_export.bench.contenders import OpenArtifact
    from anna_export.bench.flow import Plan, bench
    from anna_export.bench.result import BENCH_FILE, add_run
    from anna_export.bench.rivals import rival
    from anna_export.bench.workload import Shape
    from anna_export.report.card import add_card

    shapes = [Shape(batch, length) for batch in batches for length in lengths]
    plan = Plan(shapes, rates, rounds=rounds)
    opened = open_artifact(artifact)
    own = OpenArtifact(artifact, prompt, backend, device, threads)
    manifest = opened.manifest
    opening = None
    if against is not None:
        found = manifest.prompts.find(prompt)
        opening = rival(against, own, found, manifest.framing.max_tokens, model)
    run = bench(opened, own, plan, opening, output.stage)
    add_card(add_run(opened, run))
    if as_json:
        output.print_json(run.model_dump(mode="json"))
        return
    output.print_rows(
        {
            "artifact": f"{run.name}, {run.arithmetic}",
            "on": run.environment.hardware,
            "alone and in a batch": f"worst cosine {run.alone_cosine:.6f}",
        }
    )
    if run.rival is not None:
        output.print_rows(
            {
                "rival": f"{run.rival.name}, {run.rival.arithmetic}",
                "its vectors": f"worst cosine {run.rival.worst_cosine:.5f} to ours",
            }
        )
    heads = ["batch x tokens", "p50 ms", "p90 ms", "p99 ms", "texts/s", "tokens/s", "between"]
    table = [
        [
            f"{row.batch} x {row.tokens}",
            f"{row.p50_ms:.1f}",
            f"{row.p90_ms:.1f}",
            f"{row.p99_ms:.1f}",
            f"{row.texts_per_second.value:.1f}",
            f"{row.tokens_per_second.value:.0f}",
            f"{row.texts_per_second.low:.1f} and {row.texts_per_second.high:.1f} texts/s",
        ]
        for row in run.rows
    ]
    if run.rival is not None:
        heads.append("against it")
        for cells, row in zip(table, run.rows, strict=True):
            assert row.versus is not None
            ratio = row.versus.ratio
            cells.append(
                f"{ratio.value:.2f} x ({ratio.low:.2f} to {ratio.high:.2f}): {row.versus.verdict}"
            )
    output.print_table(heads, table)
    if run.open:
        output.print_table(
            ["texts a second", "p50 ms", "p90 ms", "p99 ms", "kept up"],
            [
                [
                    f"{one.rate:g}",
                    f"{one.p50_ms:.1f}",
                    f"{one.p90_ms:.1f}",
                    f"{one.p99_ms:.1f}",
                    "yes" if one.kept_up else "no: the queue grew",
                ]
                for one in run.open
            ],
        )
    output.print_rows({"written to": str(artifact / BENCH_FILE)})
