"""What is deployed fits what is there: extras, options, metrics. Images are not built here."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from anna_export.cli.serve import command

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "deploy").glob("Containerfile.*"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_extras_options_and_routes_of_an_image_exist(path: Path) -> None:
    text = path.read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (wanted,) = re.findall(r"/source\[([a-z,]+)\]", text)
    assert set(wanted.split(",")) <= set(extras)
    variables = {
        variable
        for option in command.params
        if isinstance(option, click.Option) and isinstance(option.envvar, str)
        for variable in [option.envvar]
    }
    assert set(re.findall(r"ANNA_[A-Z_]+", text)) <= variables
    assert re.search(r"^USER anna$", text, re.M) and "STOPSIGNAL SIGTERM" in text
    assert "/health" in text and text.rstrip().endswith('["anna-export", "serve", "/artifact"]')


def queries(board: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_board_asks_for_metrics_that_the_server_has() -> None:
    metrics = pytest.importorskip("anna_export.serve.metrics", reason="needs anna-export[serve]")
    served = metrics.Metrics()
    for counter in (served.requests.labels("r", "c"), served.rejected.labels("r")):
        counter.inc()
    served.nonfinite.labels("lost").inc()
    served.duration.labels("r").observe(1)
    names = {
        re.split(r"[{ ]", line)[0]
        for line in served.text().decode().splitlines()
        if not line.startswith("#")
    }
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    queried = {name for query in queries(board) for name in re.findall(r"anna_\w+", query)}
    assert queried and queried <= names, queried - names
    # and shows all there are
    families = {re.sub(r"_(bucket|sum|count|created|total)$", "", name) for name in names}
    assert families == {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in queried}


def test_quantiles_are_over_buckets() -> None:
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    for query in queries(board):
        if "histogram_quantile" in query:
            assert re.search(r"sum by \(le\) \(rate\(anna_\w+_bucket", query), query
