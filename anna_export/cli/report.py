"""anna-export report."""

from pathlib import Path

import click

from anna_export.console import commands, output


@click.command("report", cls=commands.Verb, example="anna-export report artifact-fp8 artifact-int8")
@click.argument("artifacts", type=commands.folder, nargs=-1, required=True)
@click.option(
    "--out",
    type=commands.path,
    help="The .html file. Default: report.html in the first artifact.",
)
@output.json_option
def command(artifacts: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write one page about an artifact, or about several side by side.

    The HTML file is self-contained. It shows accuracy against speed and size, parity by task,
    latency, prompts, layers, engines, file hashes, and the commands that make the artifacts again.
    """
    from anna_export.errors import ExtraError

    try:
        from anna_export.report.flow import report
    except ImportError as error:
        raise ExtraError(
            f"expected plotly and jinja2 for the page, found no {error.name}; install "
            "anna-export[report]"
        ) from None
    written = report(artifacts, out)
    if as_json:
        output.print_json({"report": str(written)})
        return
    output.print_rows({"report": str(written), "size": output.size(written.stat().st_size)})
